//! The kernel's texts about a process: `status`, `stat` and `timers`. Pure: nothing here opens a file.

use image::process::{Credentials, MemoryMap};

/// The text of `/proc/TID/status`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Status<'a>(pub &'a str);

impl<'a> Status<'a> {
    pub fn value(self, key: &str) -> Option<&'a str> {
        self.0.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
    }

    pub fn innermost_number(self) -> Option<i32> {
        self.value("NSpid")?.split_whitespace().last()?.parse().ok()
    }

    /// All that the text has: everything but securebits and the seccomp filters.
    pub fn credentials(self) -> Option<Credentials> {
        let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
        let mut capabilities = [0; 5];
        for (set, name) in capabilities.iter_mut().zip(sets) {
            *set = u64::from_str_radix(self.value(name)?, 16).ok()?;
        }
        let supplementary = self.value("Groups")?.split_whitespace().map(|group| group.parse().ok());
        Some(Credentials {
            users: self.four("Uid")?,
            groups: self.four("Gid")?,
            supplementary: supplementary.collect::<Option<_>>()?,
            capabilities,
            secure_bits: 0,
            no_new_privs: self.value("NoNewPrivs")? == "1",
            seccomp: image::process::Seccomp::Off,
        })
    }

    /// Whether the thread has a shadow stack.
    pub fn shadow_stack(self) -> bool {
        self.value("x86_Thread_features").is_some_and(|features| features.contains("shstk"))
    }

    fn four(self, key: &str) -> Option<[u32; 4]> {
        let mut words = self.value(key)?.split_whitespace().map(|word| word.parse().ok());
        Some([words.next()??, words.next()??, words.next()??, words.next()??])
    }
}

/// The bounds in `/proc/PID/stat`; `brk` and the auxiliary vector are not in it.
pub(super) fn memory_map(stat: &str) -> Option<MemoryMap> {
    // The name in brackets may contain anything; the third field comes after its end.
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 2..)?.split(' ').collect();
    let field = |number: usize| fields.get(number - 3)?.trim_end().parse::<u64>().ok();
    Some(MemoryMap {
        start_code: field(26)?,
        end_code: field(27)?,
        start_stack: field(28)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        arg_start: field(48)?,
        arg_end: field(49)?,
        env_start: field(50)?,
        env_end: field(51)?,
        ..MemoryMap::default()
    })
}

/// What `/proc/PID/timers` tells of one POSIX timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimerText {
    pub id: i32,
    pub signal: i32,
    pub value: u64,
    /// `SIGEV_*`.
    pub notify: i32,
    /// The host's number of the thread or process that is told.
    pub target: i32,
    pub clock: i32,
}

/// `None` where a line is not as expected.
pub(super) fn timers(text: &str) -> Option<Vec<TimerText>> {
    let lines: Vec<&str> = text.lines().collect();
    lines.chunks(4).map(timer).collect()
}

fn timer(lines: &[&str]) -> Option<TimerText> {
    let [id, signal, notify, clock] = lines else { return None };
    let (signal, value) = signal.strip_prefix("signal: ")?.split_once('/')?;
    let (kind, target) = notify.strip_prefix("notify: ")?.split_once('/')?;
    let (whom, target) = target.split_once('.')?;
    let kind = match kind {
        "signal" => libc::SIGEV_SIGNAL,
        "none" => libc::SIGEV_NONE,
        "thread" => libc::SIGEV_THREAD,
        _ => return None,
    };
    Some(TimerText {
        id: id.strip_prefix("ID: ")?.parse().ok()?,
        signal: signal.parse().ok()?,
        value: u64::from_str_radix(value.trim_start_matches("0x"), 16).ok()?,
        notify: kind | if whom == "tid" { libc::SIGEV_THREAD_ID } else { 0 },
        target: target.parse().ok()?,
        clock: clock.strip_prefix("ClockID: ")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\ta:b\nNSpid:\t4711\t12\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \n\
        CapInh:\t0000000000000001\nCapPrm:\t0000000000000003\nCapEff:\t0000000000000002\n\
        CapBnd:\t000001fffeffffff\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n\
        x86_Thread_features:\tshstk wrss\n";

    #[test]
    fn credentials_are_read_from_the_text() {
        let found = Status(STATUS).credentials().expect("complete");
        assert_eq!((found.users, found.groups), ([1, 2, 3, 4], [5, 6, 7, 8]));
        assert_eq!(found.supplementary, [9, 10]);
        assert_eq!(found.capabilities, [1, 3, 2, 0x1ff_feff_ffff, 0]);
        assert!(found.no_new_privs);
        assert_eq!(Status("Uid:\t1\t2\n").credentials(), None);
    }

    #[test]
    fn the_innermost_number_is_the_cells() {
        assert_eq!(Status(STATUS).innermost_number(), Some(12));
        assert!(Status(STATUS).shadow_stack());
        assert!(!Status("x86_Thread_features:\t\n").shadow_stack());
    }

    #[test]
    fn bounds_are_found_behind_any_name() {
        let numbers: Vec<String> = (4..=52).map(|number: u64| (number * 100).to_string()).collect();
        let stat = format!("7 (a ) S (b) S {}\n", numbers.join(" "));
        let map = memory_map(&stat).expect("complete");
        assert_eq!((map.start_code, map.end_code, map.start_stack), (2600, 2700, 2800));
        assert_eq!((map.start_data, map.start_brk, map.arg_start, map.env_end), (4500, 4700, 4800, 5100));
        assert_eq!(memory_map("7 (a) S 1 2"), None);
    }

    #[test]
    fn timers_of_each_kind_are_read() {
        let text = "ID: 3\nsignal: 27/00000000deadbeef\nnotify: signal/tid.812\nClockID: 1\n\
                    ID: 4\nsignal: 0/0000000000000000\nnotify: none/pid.800\nClockID: -6\n";
        let found = timers(text).expect("readable");
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].id, found[0].signal, found[0].value), (3, 27, 0xdead_beef));
        assert_eq!((found[0].notify, found[0].target), (libc::SIGEV_THREAD_ID, 812));
        assert_eq!((found[1].notify, found[1].clock), (libc::SIGEV_NONE, -6));
        assert_eq!(timers("ID: 3\nsignal: 1/0\n"), None);
        assert_eq!(timers(""), Some(Vec::new()));
    }
}
