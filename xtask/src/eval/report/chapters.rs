//! The chapters of the report, in their order, and their pictures.

use super::super::published::SIZES;
use super::super::{Row, sweeps};
use super::chart::{Axis, Chart, Series};

/// A picture of a chapter's rows, if there is something to draw.
pub type Draw = fn(&[Row]) -> Option<Chart>;

/// A table or a figure.
#[derive(Debug)]
pub struct Chapter {
    pub id: &'static str,
    pub title: &'static str,
    pub about: &'static str,
    /// Evaluations, and how the ids of the rows begin that are wanted of each.
    pub picks: &'static [(&'static str, &'static str)],
    pub charts: &'static [Draw],
}

pub const CHAPTERS: &[Chapter] = &[
    Chapter {
        id: "table-5.1",
        title: "Lines that change",
        about: "In the key/value server and its client, and in the word count's coordinator, when they are made \
                fault-tolerant. Counted in the sources: lines \
                taken away and put in, without blanks and comments. Strong: none anywhere. Timeline: connections are \
                reset at a takeover, so a client needs the lines that connect again. The sync call and the structure \
                are choices; the ports to etcd's Raft library stand for the usual way.",
        picks: &[("code", "changed.")],
        charts: &[],
    },
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
        about: "Of the same server: a full checkpoint on disk (disk-*, with what gzip -1 makes of it, and how many times \
                the pairs' own bytes it is); on the wire in full (full-sync-*), and each 50 ms under load (bytes-*). \
                Nothing is compressed in transit: an epoch carries the changed 64-byte lines of pages.",
        picks: &[("sizes", "disk-"), ("pause", "full-sync-"), ("pause", "bytes-"), ("pause", "pages-")],
        charts: &[disk_by_size],
    },
    Chapter {
        id: "table-5.4",
        title: "Throughput lost, by interval",
        about: "A serial client, 90 % get, 1,000 keys, with the real programs. Beside ours, programs that save \
                themselves on this machine's disk and nowhere else: redis by SAVE and BGSAVE, go-cache by its own \
                snapshots. Strong mode has no interval: it captures when an answer waits. One unprotected server is \
                asked before and after each protected one; the spread says how far to trust a row.",
        picks: &[("intervals", "lost.")],
        charts: &[lost_by_interval],
    },
    Chapter {
        id: "figure-5.3",
        title: "Requests over time, with checkpoints each 100 ms",
        about: "A serial client of 1,000 keys on a third host, counted every 20 ms.",
        picks: &[("over-time", "over-time.")],
        charts: &[over_time],
    },
    Chapter {
        id: "overhead",
        title: "Throughput lost at an interval of 50 ms",
        about: "Pairs of runs in turns, with the standby on the same processors. A serial client, 90 % get.",
        picks: &[("overhead", "overhead-")],
        charts: &[],
    },
    Chapter {
        id: "sweeps",
        title: "Pause and work lost, by what is written and by size",
        about: "A guest that does arithmetic and writes pages at a steady rate, a checkpoint each 50 ms. \
                sweep.written-N: N pages between two checkpoints, in 256 MiB; sweep.memory-N: 1,000 pages, in N. The \
                dashed lines are a model, not measured: 13 us a thread, 20 us for the mappings, 0.6 us a MiB to scan \
                and 1.3 us a page to copy on two cores; lost is that and 1 us for each page's first write.",
        picks: &[("sweeps", "sweep.")],
        charts: &[pause_by_written, pause_by_memory, lost_by_written, lost_by_memory],
    },
    Chapter {
        id: "table-5.5",
        title: "Strong consistency and replicated structures",
        about: "What it costs that nothing is answered before it is safe: transparently (strong.kv, strong.redis), for \
                the puts alone of a server that calls sync (strong.kv.sync), by one structure's changes, and by \
                encoding all of it with each write, as the thesis does; beside the same server on etcd's Raft \
                library and a synced log.",
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
        id: "figure-5.4",
        title: "Requests through the death of a host",
        about: "The same client; the power of the server's host fails (its cable is pulled, then everything on it is \
                killed), and the address moves. In timeline mode the client connects again, in strong mode its \
                connection goes on.",
        picks: &[("over-time", "through-failover.")],
        charts: &[through_failover],
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
    Chapter {
        id: "soak",
        title: "Half an hour under load",
        about: "A Go key/value server with 10,000 pairs and 8 clients on a third host, a quarter of an hour in each mode. \
                a is the primary's manager, b the standby's, each without the app. Drift is the slope of a line \
                through the readings, the first fifth left out; what grows would show there.",
        picks: &[("soak", "soak.")],
        charts: &[memory_over_time],
    },
    Chapter {
        id: "faults",
        title: "Real faults, with an etcd of three",
        about: "One fault at a time for ten seconds, or two at once, in both modes: until a caller with a new connection was answered again \
                (unavailable), clients with standing ones after the fault's end (answered-again: TCP's own retransmission \
                included), and the app was protected again. Two-audible counts copies that were heard at the switch \
                after a later one had been. A host that is cut off from its clients alone, and one that loses \
                standby and clients at once, keep the app: nobody can tell. The wall clock cannot be stepped for one host.",
        picks: &[("faults", "faults.")],
        charts: &[],
    },
    Chapter {
        id: "decision",
        title: "A decision, and a planned move",
        about: "From the suspicion (the guard's word) to the right to serve, beside a swap of the same register by \
                another client in the same run. A planned move's pause beside a checkpoint, frozen to committed, \
                that a program asks for just before.",
        picks: &[("decision", "decision."), ("decision", "move.")],
        charts: &[],
    },
    Chapter {
        id: "drill",
        title: "Drills beside the primary",
        about: "A serial client's throughput in windows of three seconds, in turns without a drill, with one, and without \
                once more. Lost is against the mean of the two without; noise is how much those two differ, and the aim. \
                All along is with one drill after the other, as nobody would hold them. The standby has the same two cores as the primary here.",
        picks: &[("drill", "drill.")],
        charts: &[],
    },
    Chapter {
        id: "table-4.1",
        title: "Lines of code",
        about: "Of each component, without blanks and comments; tests apart.",
        picks: &[("code", "code.")],
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

fn disk_by_size(rows: &[Row]) -> Option<Chart> {
    by_size(rows, "disk-", "A full checkpoint on disk", "MB")
}

fn pause_by_written(rows: &[Row]) -> Option<Chart> {
    sweep(rows, "written-", ".pause", "pause, ms (median)", sweeps::model_pause_ms)
}

fn pause_by_memory(rows: &[Row]) -> Option<Chart> {
    sweep(rows, "memory-", ".pause", "pause, ms (median)", sweeps::model_pause_ms)
}

fn lost_by_written(rows: &[Row]) -> Option<Chart> {
    sweep(rows, "written-", ".lost", "lost, %", sweeps::model_lost_percent)
}

fn lost_by_memory(rows: &[Row]) -> Option<Chart> {
    sweep(rows, "memory-", ".lost", "lost, %", sweeps::model_lost_percent)
}

/// What was measured, and the model's dashes.
fn sweep(rows: &[Row], of: &str, part: &str, y: &'static str, model: fn(f64, f64) -> f64) -> Option<Chart> {
    let beginning = format!("sweep.{of}");
    let by_pages = of == "written-";
    let wanted = rows.iter().filter(|row| row.id.starts_with(&beginning) && row.id.ends_with(part));
    let (mut measured, mut modelled) = (Vec::new(), Vec::new());
    for row in wanted {
        let Some((memory, pages)) = sweeps::point_of(&row.id) else { continue };
        let x = if by_pages { pages } else { memory };
        measured.extend(row.median.map(|median| [x, median]));
        modelled.push([x, model(memory, pages)]);
    }
    let series = |name: &str, points, quoted| Series { name: name.to_owned(), points, quoted };
    let (title, x) = match by_pages {
        true => ("By pages written between two checkpoints", "pages"),
        false => ("By size of memory", "MiB"),
    };
    Some(Chart {
        title: title.to_owned(),
        x: Axis { name: x, logarithmic: true },
        y: Axis { name: y, logarithmic: false },
        series: vec![series("here", measured, false), series("model", modelled, true)],
    })
}

/// A line for each way of saving.
fn lost_by_interval(rows: &[Row]) -> Option<Chart> {
    let mut series: Vec<Series> = Vec::new();
    for row in rows {
        let Some((name, interval_ms)) = way_and_interval(&row.id) else { continue };
        let name = name.to_owned();
        let place = series.iter().position(|series| series.name == name).unwrap_or(series.len());
        if place == series.len() {
            series.push(Series { name, ..Series::default() });
        }
        series[place].points.extend(row.median.map(|lost| [interval_ms, lost]));
    }
    let thesis = rows.iter().filter(|row| row.id.starts_with("lost.timeline-"));
    let thesis = thesis.filter_map(|row| Some([way_and_interval(&row.id)?.1, row.thesis?])).collect();
    series.push(Series { name: "thesis".to_owned(), points: thesis, quoted: true });
    Some(Chart {
        title: "Throughput lost".to_owned(),
        x: Axis { name: "interval, ms", logarithmic: true },
        y: Axis { name: "lost, %", logarithmic: false },
        series,
    })
}

/// `lost.redis-save-50ms`
fn way_and_interval(id: &str) -> Option<(&str, f64)> {
    let (way, interval) = id.strip_prefix("lost.")?.strip_suffix("ms")?.rsplit_once('-')?;
    Some((way, interval.parse().ok()?))
}

fn over_time(rows: &[Row]) -> Option<Chart> {
    traces(rows, "over-time.", "Requests over time")
}

fn through_failover(rows: &[Row]) -> Option<Chart> {
    let mut chart = traces(rows, "through-failover.", "Requests through a failover")?;
    let most =
        chart.series.iter().flat_map(|series| &series.points).map(|[_, rate]| *rate).reduce(f64::max)?;
    for row in rows.iter().filter(|row| row.id.ends_with(".died-at")) {
        let name = row.id.trim_start_matches("through-failover.").trim_end_matches(".died-at");
        let points = row.median.map_or(Vec::new(), |at| vec![[at, 0.0], [at, most]]);
        chart.series.push(Series { name: format!("{name}: host dies"), points, quoted: true });
    }
    Some(chart)
}

fn memory_over_time(rows: &[Row]) -> Option<Chart> {
    let memory: Vec<Row> = rows.iter().filter(|row| row.id.ends_with(".memory")).cloned().collect();
    let chart = traces(&memory, "soak.", "Memory of both managers")?;
    Some(Chart { y: Axis { name: "MiB", logarithmic: false }, ..chart })
}

fn traces(rows: &[Row], beginning: &str, title: &str) -> Option<Chart> {
    let traced = rows.iter().filter(|row| !row.trace.is_empty());
    let series = |row: &Row| Series {
        name: row.id.trim_start_matches(beginning).to_owned(),
        points: row.trace.clone(),
        quoted: false,
    };
    Some(Chart {
        title: title.to_owned(),
        x: Axis { name: "s", logarithmic: false },
        y: Axis { name: "requests/s", logarithmic: false },
        series: traced.map(series).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_and_its_interval_are_read_from_a_row() {
        assert_eq!(way_and_interval("lost.redis-save-50ms"), Some(("redis-save", 50.0)));
        assert_eq!(way_and_interval("lost.timeline-50ms.with"), None);
        assert_eq!(way_and_interval("lost.strong"), None);
    }

    #[test]
    fn a_sweep_is_drawn_beside_its_model() {
        let row = |id: &str| Row::measured(id, "ms", &[1.0]);
        let rows =
            [row("sweep.written-300.pause"), row("sweep.written-1000.pause"), row("sweep.written-300.lost")];
        let chart = pause_by_written(&rows).expect("figures");
        let points: Vec<_> = chart.series.iter().map(|of| (of.points.len(), of.quoted)).collect();
        assert_eq!(points, [(2, false), (2, true)]);
        assert_eq!(chart.series[0].points[1][0], 1000.0);
    }

    #[test]
    fn every_way_has_a_line_and_the_thesis_a_dashed_one() {
        let row = |id: &str| Row::measured(id, "%", &[5.0]).thesis(29.0);
        let rows = [row("lost.timeline-50ms"), row("lost.timeline-500ms"), row("lost.redis-save-50ms")];
        let chart = lost_by_interval(&rows).expect("figures");
        let lines: Vec<_> =
            chart.series.iter().map(|of| (of.name.as_str(), of.points.len(), of.quoted)).collect();
        assert_eq!(lines, [("timeline", 2, false), ("redis-save", 1, false), ("thesis", 2, true)]);
    }
}
