//! What a row says, in words that all forms of the report share.

use super::super::Row;
use super::super::table::short;
use super::Loss;

/// `missed by 36 %`, `met, 12 % to spare`.
pub fn of_aim(row: &Row) -> String {
    let (Some(met), Some(median), Some(aim)) = (row.met, row.median, row.aim) else { return String::new() };
    let is = if met { "met" } else { "missed" };
    if aim == 0.0 {
        return if met { is.to_owned() } else { format!("missed by {}", short(median)) };
    }
    let percent = ((median / aim - 1.0) * 100.0).abs();
    match met {
        true => format!("met, {percent:.0} % to spare"),
        false => format!("missed by {percent:.0} %"),
    }
}

/// The figures in the middle, and what they lie between.
pub fn of_spread(row: &Row) -> String {
    match (row.min, row.max) {
        (Some(min), Some(max)) if row.runs > 1 => format!("{} – {}", short(min), short(max)),
        _ => String::new(),
    }
}

pub fn of_figure(figure: Option<f64>) -> String {
    figure.map_or(String::new(), short)
}

/// Another's figure, and how many times ours it is.
pub fn of_other(other: Option<f64>, row: &Row) -> String {
    let Some(other) = other else { return String::new() };
    match row.median.filter(|ours| *ours > 0.0 && other > 0.0) {
        Some(ours) => format!("{} ({}×)", short(other), short(other / ours)),
        None => short(other),
    }
}

/// Where a peer's figure is from.
pub fn of_source(is_quoted: bool) -> &'static str {
    if is_quoted { "quoted" } else { "measured here" }
}

pub fn of_peer(row: &Row) -> String {
    let source = of_source(!row.peer_measured);
    row.peer_name.as_ref().map_or(String::new(), |name| format!("{name} – {source}"))
}

/// By how much somebody else is better.
pub fn of_loss(loss: &Loss<'_>) -> String {
    let Some(ours) = loss.row.median.filter(|ours| *ours > 0.0 && loss.theirs > 0.0) else {
        return String::new();
    };
    let times = if loss.row.more_is_better { loss.theirs / ours } else { ours / loss.theirs };
    format!("{times:.2}×")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aim_is_met_or_missed_by_how_much() {
        let pause = |median: f64, aim: f64| of_aim(&Row::measured("a", "ms", &[median]).aim(aim));
        assert_eq!(pause(0.68, 0.5), "missed by 36 %");
        assert_eq!(pause(1.5, 2.0), "met, 25 % to spare");
        assert_eq!((pause(0.0, 0.0), pause(3.0, 0.0)), ("met".to_owned(), "missed by 3.00".to_owned()));
        assert_eq!(of_aim(&Row::rate("a", "/s", &[900.0]).aim_at_least(1000.0)), "missed by 10 %");
        assert_eq!(of_aim(&Row::measured("a", "ms", &[])), "");
    }
}
