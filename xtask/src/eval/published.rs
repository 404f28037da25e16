//! What the others reached, and what we aim at: the figures that ours stand beside, each with its source.
//!
//! - *Thesis*: M. F. Kaashoek, "CheckSync: Transparent Primary-Backup Replication for Go Applications Using
//!   Checkpoints", MIT 2021; tables 5.2 (image), 5.3 (pause), 5.4 (throughput), 5.6 (restore) and 5.7 (failover). A Go map of
//!   72-byte pairs under a serial client, 90 % get and 10 % put.
//! - *CRIU 4.2*: a release build on a machine like those that ours are taken on (2 cores, Linux 6.18), on a Go
//!   map of the same pairs, images on ext4. Medians of `frozen_time` and `restore_time`. Stands in where no
//!   working criu (4.1 or newer) is on the PATH; Debian's 3.17 does not run on this kernel.

use anyhow::Result;

use super::Row;

/// How CRIU's figures are marked when they come from here and not from the same run.
pub const CRIU_ON_RECORD: &str = "CRIU 4.2, on record (an earlier run on a machine like this)";

/// One size of the key/value map.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub keys: u64,
    /// Table 5.3.
    thesis_pause_ms: f64,
    /// Table 5.6.
    thesis_restore_ms: f64,
    /// Table 5.7: detection, restore and address together.
    thesis_failover_ms: f64,
    criu_pause_ms: Option<f64>,
    criu_restore_ms: Option<f64>,
    /// Table 5.2, in MB.
    thesis_image_mb: Option<f64>,
    criu_image_mb: Option<f64>,
    /// The aim grows with memory between its two ends.
    aim_pause_ms: Option<f64>,
}

pub const SIZES: [Size; 5] = [
    Size {
        keys: 1_000,
        thesis_pause_ms: 15.1,
        thesis_restore_ms: 3.15,
        thesis_failover_ms: 653.0,
        criu_pause_ms: Some(5.8),
        criu_restore_ms: Some(3.2),
        thesis_image_mb: Some(8.16),
        criu_image_mb: Some(1.0),
        aim_pause_ms: Some(0.5),
    },
    Size {
        keys: 10_000,
        thesis_pause_ms: 16.5,
        thesis_restore_ms: 5.87,
        thesis_failover_ms: 595.0,
        criu_pause_ms: None,
        criu_restore_ms: None,
        thesis_image_mb: None,
        criu_image_mb: None,
        aim_pause_ms: None,
    },
    Size {
        keys: 100_000,
        thesis_pause_ms: 24.8,
        thesis_restore_ms: 11.0,
        thesis_failover_ms: 648.0,
        criu_pause_ms: Some(15.9),
        criu_restore_ms: Some(12.7),
        thesis_image_mb: Some(27.0),
        criu_image_mb: Some(15.7),
        aim_pause_ms: None,
    },
    Size {
        keys: 1_000_000,
        thesis_pause_ms: 441.9,
        thesis_restore_ms: 71.4,
        thesis_failover_ms: 718.0,
        criu_pause_ms: Some(126.2),
        criu_restore_ms: Some(114.8),
        thesis_image_mb: Some(289.0),
        criu_image_mb: Some(196.4),
        aim_pause_ms: None,
    },
    Size {
        keys: 10_000_000,
        thesis_pause_ms: 2208.0,
        thesis_restore_ms: 500.0,
        thesis_failover_ms: 1132.0,
        criu_pause_ms: Some(760.9),
        criu_restore_ms: Some(1005.8),
        thesis_image_mb: Some(2288.0),
        criu_image_mb: Some(1682.5),
        aim_pause_ms: Some(2.0),
    },
];

/// Table 5.4, an interval of 50 ms.
const THESIS_OVERHEAD_PERCENT: f64 = 29.0;
const AIM_OVERHEAD_PERCENT: f64 = 5.0;
/// The limit; 2 ms is what we want to see.
const AIM_RESTORE_MS: f64 = 5.0;
const AIM_DEAD_HOST_MS: f64 = 150.0;
const AIM_KILLED_APP_MS: f64 = 20.0;

impl Size {
    pub fn name(&self) -> String {
        match self.keys {
            keys if keys >= 1_000_000 => format!("{}M keys", keys / 1_000_000),
            keys => format!("{}k keys", keys / 1_000),
        }
    }

    /// As in the ids of rows: `10k`.
    pub fn short_name(&self) -> String {
        self.name().trim_end_matches(" keys").to_owned()
    }

    /// Gives a row of pauses, in milliseconds, its company.
    pub fn beside_pause(&self, row: Row) -> Row {
        row.thesis(self.thesis_pause_ms).peer(CRIU_ON_RECORD, self.criu_pause_ms).aim(self.aim_pause_ms)
    }

    /// The same for restores.
    pub fn beside_restore(&self, row: Row) -> Row {
        row.thesis(self.thesis_restore_ms).peer(CRIU_ON_RECORD, self.criu_restore_ms).aim(AIM_RESTORE_MS)
    }

    /// The same for checkpoints on disk, in megabytes.
    pub fn beside_disk(&self, row: Row) -> Row {
        row.thesis(self.thesis_image_mb).peer(CRIU_ON_RECORD, self.criu_image_mb)
    }

    /// The same for failovers of a dead host, detection included.
    pub fn beside_failover(&self, row: Row) -> Row {
        row.thesis(self.thesis_failover_ms).aim(AIM_DEAD_HOST_MS)
    }
}

/// The same for failovers of a killed app, which needs no heartbeat to be seen.
pub fn beside_killed_app(row: Row) -> Row {
    row.aim(AIM_KILLED_APP_MS)
}

/// The same for throughput lost at an interval of 50 ms.
pub fn beside_overhead(row: Row) -> Row {
    row.thesis(THESIS_OVERHEAD_PERCENT).aim(AIM_OVERHEAD_PERCENT)
}

/// All of it, with nothing measured.
pub fn rows() -> Result<Vec<Row>> {
    let rows = |what: &str, beside: fn(&Size, Row) -> Row| {
        SIZES.map(|size| beside(&size, Row::measured(format!("{what}/{}", size.name()), "ms", &[]))).to_vec()
    };
    let killed = beside_killed_app(Row::measured("failover/killed app", "ms", &[]));
    let lost = |name| beside_overhead(Row::measured(format!("overhead/{name}"), "%", &[]));
    Ok([
        rows("pause", Size::beside_pause),
        rows("restore", Size::beside_restore),
        rows("failover", Size::beside_failover),
        SIZES
            .map(|size| size.beside_disk(Row::measured(format!("disk/{}", size.name()), "MB", &[])))
            .to_vec(),
        vec![killed, lost("1k keys"), lost("1M keys")],
    ]
    .concat())
}
