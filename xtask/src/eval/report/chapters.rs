//! The chapters of the report, in their order, and their pictures.

use super::super::Row;
use super::super::published::SIZES;
use super::chart::{Axis, Chart, Series};

/// A table or a figure.
#[derive(Debug)]
pub struct Chapter {
    pub id: &'static str,
    pub title: &'static str,
    pub about: &'static str,
    /// Evaluations, and how the ids of the rows begin that are wanted of each.
    pub picks: &'static [(&'static str, &'static str)],
    pub charts: &'static [fn(&[Row]) -> Option<Chart>],
}

pub const CHAPTERS: &[Chapter] = &[
    Chapter {
        id: "table-5.3",
        title: "Pause per checkpoint, by size",
        about: "How long a Go key/value server with 72-byte pairs stands still for a checkpoint, while a serial client \
                asks it (90 % get), every 50 ms. By the engine's clock; spin.* is what a guest saw that looks at the \
                clock all the time: the two must agree. The thesis and CRIU dump all of memory each time.",
        picks: &[("pause", "pause-"), ("pause", "threads-"), ("pause", "spin.")],
        charts: &[pause_by_size],
    },
    Chapter {
        id: "table-5.2",
        title: "Bytes per checkpoint, by size",
        about: "What one checkpoint of the same server puts on the wire: in full, and each 50 ms.",
        picks: &[("pause", "full-sync-"), ("pause", "bytes-"), ("pause", "pages-")],
        charts: &[],
    },
    Chapter {
        id: "overhead",
        title: "Throughput lost at an interval of 50 ms",
        about: "Pairs of runs in turns, with the standby on the same processors. A serial client, 90 % get.",
        picks: &[("overhead", "overhead-")],
        charts: &[],
    },
    Chapter {
        id: "table-5.5",
        title: "Strong consistency and replicated structures",
        about: "What it costs that nothing is answered before it is safe: transparently (strong.kv, strong.redis), by \
                one structure's changes, and by encoding all of it with each write, as the thesis does; beside the \
                same server on etcd's Raft library and a synced log.",
        picks: &[("strong", "strong."), ("structure", "structure-")],
        charts: &[],
    },
    Chapter {
        id: "table-5.6",
        title: "Restore, by size",
        about: "From the word to take over until the app runs, an epoch that had yet to be applied included.",
        picks: &[("pause", "restore-")],
        charts: &[restore_by_size],
    },
    Chapter {
        id: "table-5.7",
        title: "Failover, by size",
        about: "The real programs in two network namespaces: from the death of a host (its cable is pulled) or of the \
                app to the first answer of the copy, detection included. Clients ask on the standby's host: how they \
                find a new address is not in these figures.",
        picks: &[("failover", "failover-")],
        charts: &[failover_by_size],
    },
    Chapter {
        id: "jobs",
        title: "Work whose machine dies in the middle",
        about: "The thesis's word count (a coordinator in Go, two workers over net/rpc) and its matrix on all cores, as \
                they are. The app or its host dies when half is done; the result must be that of a plain run \
                (wrong-results counts those that are not). Work that is lost is the time from the freeze that was \
                restored to the death. The time that the matrix takes includes the start of its managers; both \
                hosts share these processors.",
        picks: &[("jobs", "words."), ("jobs", "matrix.")],
        charts: &[],
    },
    Chapter {
        id: "takeover",
        title: "Deaths at random instants, judged",
        about: "Rounds with concurrent clients, and Porcupine over their whole history. In timeline mode the same judge \
                has to find lost writes.",
        picks: &[("takeover", "takeover")],
        charts: &[],
    },
];

fn pause_by_size(rows: &[Row]) -> Option<Chart> {
    by_size(rows, "pause-", "Pause per checkpoint", "pause, ms (median)")
}

fn restore_by_size(rows: &[Row]) -> Option<Chart> {
    by_size(rows, "restore-", "Restore", "restore, ms (median)")
}

fn failover_by_size(rows: &[Row]) -> Option<Chart> {
    by_size(rows, "failover-dead-host-", "Failover of a dead host", "first answer after, ms (median)")
}

/// Ours, the thesis's and the peer's, over the number of keys.
fn by_size(rows: &[Row], beginning: &str, title: &str, y: &'static str) -> Option<Chart> {
    let sized = SIZES.iter().filter_map(|size| {
        let id = format!("{beginning}{}", size.short_name());
        Some((size.keys as f64, rows.iter().find(|row| row.id == id)?))
    });
    let sized: Vec<(f64, &Row)> = sized.collect();
    let peer = sized.iter().find_map(|(_, row)| row.peer_name.as_deref()).unwrap_or_default();
    let series = |name: &str, quoted, of: fn(&Row) -> Option<f64>| Series {
        name: name.to_owned(),
        points: sized.iter().filter_map(|(keys, row)| Some([*keys, of(row)?])).collect(),
        quoted,
    };
    let peer = peer.split(',').next().unwrap_or_default();
    Some(Chart {
        title: title.to_owned(),
        x: Axis { name: "keys", logarithmic: true },
        y: Axis { name: y, logarithmic: true },
        series: vec![
            series("here", false, |row| row.median),
            series("thesis", true, |row| row.thesis),
            series(peer, true, |row| row.peer),
        ],
    })
}
