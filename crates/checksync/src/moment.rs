//! Moments and checkpoints as people write them: `2026-01-31T12:00:00Z`, `10m` ago, `3.1042`.

use std::time::Duration;

use image::CheckpointId;

use crate::duration;

/// Nanoseconds since 1970, or so long before now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    At(u64),
    Ago(Duration),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no moment; write 2026-01-31T12:00:00Z, or a span like 10m, counted back from now")]
pub struct NotAMoment(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no checkpoint; write TERM.EPOCH, like 3.1042")]
pub struct NotACheckpoint(String);

const DAY_SECONDS: u64 = 86_400;

impl Moment {
    pub fn nanoseconds(self, now_ns: u64) -> u64 {
        match self {
            Self::At(ns) => ns,
            Self::Ago(span) => now_ns.saturating_sub(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)),
        }
    }
}

pub fn parse(text: &str) -> Result<Moment, NotAMoment> {
    if let Ok(span) = duration::parse(text) {
        return Ok(Moment::Ago(span));
    }
    seconds(text)
        .map(|seconds| Moment::At(seconds * 1_000_000_000))
        .ok_or_else(|| NotAMoment(text.to_owned()))
}

fn seconds(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    let valid = (1970..2500).contains(&year)
        && (1..=12).contains(&month)
        && (1..=month_days(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !valid {
        return None;
    }
    let whole_years = (1970..year).map(year_days).sum::<u64>();
    let days = whole_years + (1..month).map(|month| month_days(year, month)).sum::<u64>() + day - 1;
    Some(days * DAY_SECONDS + hour * 3600 + minute * 60 + second)
}

/// Three numbers with so many digits each.
fn numbers(text: &str, mark: char, digits: [usize; 3]) -> Option<[u64; 3]> {
    let mut parts = text.split(mark);
    let mut found = [0; 3];
    for (number, digits) in found.iter_mut().zip(digits) {
        let part =
            parts.next().filter(|part| part.len() == digits && part.bytes().all(|b| b.is_ascii_digit()))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(found)
}

fn year_days(year: u64) -> u64 {
    365 + u64::from(year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn month_days(year: u64, month: u64) -> u64 {
    match month {
        2 => year_days(year) - 337,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// As [`parse`] reads it, in whole seconds.
pub fn text(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    let (mut days, rest) = (seconds / DAY_SECONDS, seconds % DAY_SECONDS);
    let (mut year, mut month) = (1970, 1);
    while days >= year_days(year) {
        days -= year_days(year);
        year += 1;
    }
    while days >= month_days(year, month) {
        days -= month_days(year, month);
        month += 1;
    }
    let day = days + 1;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// The wall clock.
pub fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

pub fn parse_checkpoint(text: &str) -> Result<CheckpointId, NotACheckpoint> {
    let id = text.split_once('.').and_then(|(term, epoch)| Some((term.parse().ok()?, epoch.parse().ok()?)));
    let id = id.map(|(term, epoch)| CheckpointId::new(term, epoch)).or_else(|| text.parse().ok());
    id.ok_or_else(|| NotACheckpoint(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_survive_writing_and_reading() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T23:59:59Z", 951_868_799),
            ("2026-11-23T04:00:00Z", 1_795_406_400),
        ] {
            let ns = seconds * 1_000_000_000;
            assert_eq!(parse(text), Ok(Moment::At(ns)));
            assert_eq!(super::text(ns), text);
        }
        assert_eq!(parse("10m").unwrap().nanoseconds(601_000_000_000), 1_000_000_000);
    }

    #[test]
    fn anything_else_is_refused_by_its_text() {
        for text in
            ["", "now", "2026-02-30T00:00:00Z", "2026-1-1T00:00:00Z", "2026-01-01", "1969-12-31T00:00:00Z"]
        {
            assert_eq!(parse(text), Err(NotAMoment(text.to_owned())));
        }
        for text in ["", "3", "3.x", "3.1.2"] {
            assert_eq!(parse_checkpoint(text), Err(NotACheckpoint(text.to_owned())));
        }
        assert_eq!(parse_checkpoint("3.1042"), parse_checkpoint("3/1042"));
    }
}
