//! Reads the text of `/proc/PID/fdinfo/N`. Pure: nothing here opens a file.

use image::descriptor::{Lock, TimerDescriptor};

/// The lines that every descriptor has, and the text with the lines of its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info<'a> {
    pub position: i64,
    /// `F_GETFL`, with `O_CLOEXEC` where the descriptor has it.
    pub flags: u32,
    pub mount: u32,
    pub inode: u64,
    pub details: &'a str,
}

/// One `tfd:` line of an epoll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpollLine {
    pub target: i32,
    pub events: u32,
    pub data: u64,
    pub inode: u64,
    pub device: u64,
}

/// One `inotify` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchLine {
    pub number: i32,
    pub inode: u64,
    /// As in `st_dev`'s old encoding: major << 20 | minor.
    pub device: u32,
    pub mask: u32,
    pub handle_kind: i32,
    pub handle: Vec<u8>,
}

/// What a `lock:` line stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockLine {
    Held(Lock),
    /// A lease, a delegation, or what a newer kernel may add.
    Other,
}

impl<'a> Info<'a> {
    /// `None` where a line that every kernel since 5.14 writes is not in its place.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (position, text) = first(text, "pos:")?;
        let (flags, text) = first(text, "flags:")?;
        let (mount, text) = first(text, "mnt_id:")?;
        let (inode, details) = first(text, "ino:")?;
        Some(Self {
            position: position.parse().ok()?,
            flags: u32::from_str_radix(flags, 8).ok()?,
            mount: mount.parse().ok()?,
            inode: inode.parse().ok()?,
            details,
        })
    }

    pub fn close_on_exec(&self) -> bool {
        self.flags & libc::O_CLOEXEC as u32 != 0
    }

    /// Counter, and whether it counts down one by one.
    pub fn event(&self) -> Option<(u64, bool)> {
        let count = u64::from_str_radix(value(self.details, "eventfd-count:")?, 16).ok()?;
        Some((count, value(self.details, "eventfd-semaphore:") == Some("1")))
    }

    pub fn timer(&self) -> Option<TimerDescriptor> {
        Some(TimerDescriptor {
            clock: value(self.details, "clockid:")?.parse().ok()?,
            ticks: value(self.details, "ticks:")?.parse().ok()?,
            flags: u32::from_str_radix(value(self.details, "settime flags:")?, 8).ok()?,
            remaining_ns: seconds_pair(value(self.details, "it_value:")?)?,
            interval_ns: seconds_pair(value(self.details, "it_interval:")?)?,
        })
    }

    pub fn signal_mask(&self) -> Option<u64> {
        u64::from_str_radix(value(self.details, "sigmask:")?, 16).ok()
    }

    /// The process behind a pidfd: -1 when it is gone.
    pub fn pid(&self) -> Option<i32> {
        value(self.details, "Pid:")?.parse().ok()
    }

    /// How many descriptors lie in a unix socket's receive queue.
    pub fn descriptors_in_flight(&self) -> u64 {
        value(self.details, "scm_fds:").and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    /// `None` where a line cannot be read.
    pub fn epoll_lines(&self) -> Option<Vec<EpollLine>> {
        self.details.lines().filter(|line| line.starts_with("tfd:")).map(epoll_line).collect()
    }

    /// `None` where a line cannot be read.
    pub fn watch_lines(&self) -> Option<Vec<WatchLine>> {
        self.details.lines().filter_map(|line| line.strip_prefix("inotify ")).map(watch_line).collect()
    }

    /// `None` where a line cannot be read.
    pub fn lock_lines(&self) -> Option<Vec<LockLine>> {
        self.details.lines().filter_map(|line| line.strip_prefix("lock:")).map(lock_line).collect()
    }
}

/// What stands after `name` in the line that starts with it.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// What stands after `name` in the first line, and the other lines.
fn first<'a>(text: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let (line, others) = text.split_once('\n')?;
    Some((line.strip_prefix(name)?.trim(), others))
}

/// `(12, 500)`: seconds and nanoseconds.
fn seconds_pair(text: &str) -> Option<u64> {
    let (seconds, nanoseconds) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    let seconds: u64 = seconds.trim().parse().ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds.trim().parse().ok()?)
}

/// `tfd:        3 events:       19 data:                3  pos:0 ino:3764 sdev:9`
fn epoll_line(line: &str) -> Option<EpollLine> {
    let mut words = line.split([' ', ':', '\t']).filter(|word| !word.is_empty());
    let mut after = |name: &str| words.find(|word| *word == name).and_then(|_| words.next());
    Some(EpollLine {
        target: after("tfd")?.parse().ok()?,
        events: u32::from_str_radix(after("events")?, 16).ok()?,
        data: u64::from_str_radix(after("data")?, 16).ok()?,
        inode: u64::from_str_radix(after("ino")?, 16).ok()?,
        device: u64::from_str_radix(after("sdev")?, 16).ok()?,
    })
}

/// `wd:1 ino:2c4d sdev:fe00000 mask:fce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:4d2c…`
fn watch_line(line: &str) -> Option<WatchLine> {
    let word = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
    let number = |name: &str| u64::from_str_radix(word(name)?, 16).ok();
    Some(WatchLine {
        number: word("wd")?.parse().ok()?,
        inode: number("ino")?,
        device: number("sdev")? as u32,
        mask: number("mask")? as u32,
        handle_kind: number("fhandle-type").unwrap_or(0) as i32,
        handle: word("f_handle").map_or(Some(Vec::new()), bytes_from_hex)?,
    })
}

fn bytes_from_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.trim().as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// `1: POSIX  ADVISORY  WRITE 9510 fe:00:9978021 0 99`
fn lock_line(line: &str) -> Option<LockLine> {
    let mut words = line.split_whitespace().skip(1);
    let (kind, _, access) = (words.next()?, words.next()?, words.next()?);
    let (start, end) = (words.nth(2)?.parse().ok()?, words.next()?);
    let exclusive = access == "WRITE";
    let len = if end == "EOF" { 0 } else { end.parse::<i64>().ok()? - start + 1 };
    Some(match kind {
        "FLOCK" => LockLine::Held(Lock::Whole { exclusive }),
        "OFDLCK" => LockLine::Held(Lock::OpenFile { exclusive, start, len }),
        "POSIX" => LockLine::Held(Lock::Process { exclusive, start, len }),
        _ => LockLine::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMON: &str = "pos:\t12\nflags:\t02100002\nmnt_id:\t27\nino:\t9978021\n";

    #[test]
    fn reads_the_common_lines() {
        let info = Info::parse(COMMON).expect("complete");
        assert_eq!((info.position, info.mount, info.inode, info.details), (12, 27, 9_978_021, ""));
        assert!(info.close_on_exec());
        assert_eq!(info.flags & 3, 2);
    }

    #[test]
    fn a_text_without_inode_is_not_read() {
        assert_eq!(Info::parse("pos:\t0\nflags:\t02\nmnt_id:\t1\n"), None);
    }

    #[test]
    fn reads_the_exact_64_bits_of_epoll_data() {
        let text =
            format!("{COMMON}tfd:       12 events: 8000201d data: fedcba9876543210  pos:0 ino:eb4 sdev:9\n");
        let lines = Info::parse(&text).and_then(|info| info.epoll_lines()).expect("readable");
        let expected = EpollLine {
            target: 12,
            events: 0x8000_201d,
            data: 0xfedc_ba98_7654_3210,
            inode: 0xeb4,
            device: 9,
        };
        assert_eq!(lines, [expected]);
    }

    #[test]
    fn reads_counters_and_timers() {
        let text = format!("{COMMON}eventfd-count:               1f\neventfd-id: 1\neventfd-semaphore: 1\n");
        assert_eq!(Info::parse(&text).and_then(|info| info.event()), Some((31, true)));
        let text = format!(
            "{COMMON}clockid: 1\nticks: 7\nsettime flags: 03\nit_value: (1, 5)\nit_interval: (0, 250)\n"
        );
        let expected =
            TimerDescriptor { clock: 1, ticks: 7, remaining_ns: 1_000_000_005, interval_ns: 250, flags: 3 };
        assert_eq!(Info::parse(&text).and_then(|info| info.timer()), Some(expected));
    }

    #[test]
    fn reads_locks_of_each_kind() {
        let text = format!(
            "{COMMON}lock:\t1: FLOCK  ADVISORY  WRITE 359 fe:00:11691 0 EOF\n\
             lock:\t2: OFDLCK ADVISORY  READ -1 fe:00:11691 5 9\n\
             lock:\t3: POSIX  ADVISORY  WRITE 359 fe:00:11691 100 EOF\n\
             lock:\t4: LEASE  ACTIVE    READ 359 fe:00:11691 0 EOF\n"
        );
        let lines = Info::parse(&text).and_then(|info| info.lock_lines()).expect("readable");
        let expected = [
            LockLine::Held(Lock::Whole { exclusive: true }),
            LockLine::Held(Lock::OpenFile { exclusive: false, start: 5, len: 5 }),
            LockLine::Held(Lock::Process { exclusive: true, start: 100, len: 0 }),
            LockLine::Other,
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn reads_watches_with_their_handle() {
        let text = format!(
            "{COMMON}inotify wd:3 ino:9e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:2 \
             fhandle-type:1 f_handle:1aff\n"
        );
        let lines = Info::parse(&text).and_then(|info| info.watch_lines()).expect("readable");
        assert_eq!(lines.len(), 1);
        assert_eq!((lines[0].number, lines[0].device, lines[0].mask), (3, 0x80_0013, 0x800_afce));
        assert_eq!((lines[0].handle_kind, lines[0].handle.as_slice()), (1, [0x1a, 0xff].as_slice()));
    }
}
