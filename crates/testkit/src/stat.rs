//! What the kernel counts of a process or a thread, in its `stat`.

/// Its name, and the seconds that it has run so far, in user mode and in the kernel. N.B. the name may hold blanks and
/// brackets.
#[must_use]
pub fn name_and_seconds(stat: &str) -> Option<(&str, f64)> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let mut words = rest.split_ascii_whitespace().skip(11);
    let user: f64 = words.next()?.parse().ok()?;
    let kernel: f64 = words.next()?.parse().ok()?;
    Some((name, (user + kernel) / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_behind_a_name_with_blanks() {
        let stat = "12 (a ) b) S 1 1 1 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 1 0";
        assert_eq!(name_and_seconds(stat), Some(("a ) b", 2.0)));
        assert_eq!(name_and_seconds(""), None);
    }
}
