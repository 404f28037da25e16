//! Spans of time as people write them: `50ms`, `1.5s`, `2m`.

use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no span of time; write it like 50ms, 1.5s or 2m")]
pub struct NotASpan(String);

pub fn parse(text: &str) -> Result<Duration, NotASpan> {
    let not_a_span = || NotASpan(text.to_owned());
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(not_a_span)?;
    let (number, unit) = text.split_at(unit_at);
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(not_a_span()),
    };
    let plain = !number.is_empty() && number.chars().all(|c| c.is_ascii_digit() || c == '.');
    let number: f64 = number.parse().ok().filter(|_| plain).ok_or_else(not_a_span)?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| not_a_span())
}

/// For the configuration file.
pub fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = <String as serde::Deserialize>::deserialize(from)?;
    parse(&text).map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_people_write_them() {
        for (text, micros) in [("50ms", 50_000), ("1.5s", 1_500_000), ("2m", 120_000_000), ("20us", 20)] {
            assert_eq!(parse(text), Ok(Duration::from_micros(micros)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_by_its_text() {
        for text in ["", "50", "ms", "-1s", "1e99s", "1 s", "5 minutes", "nan s", "99999999999999999999h"] {
            assert_eq!(parse(text), Err(NotASpan(text.to_owned())), "{text}");
        }
    }
}
