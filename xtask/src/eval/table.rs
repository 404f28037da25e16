//! Rows as text, for a terminal and for the README.

use super::Row;

const HEADINGS: [&str; 9] = ["", "unit", "median", "p99", "runs", "thesis", "peer", "aim", "met"];

/// A table with a line per row, and below it who the peers are.
pub fn render(rows: &[Row]) -> String {
    let mut lines = vec![HEADINGS.map(str::to_owned)];
    lines.extend(rows.iter().map(cells));
    let widths = widths(&lines);
    let mut text: String = lines.iter().map(|line| aligned(line, &widths)).collect();
    let mut peers: Vec<_> = rows.iter().filter_map(|row| row.peer_name.as_deref()).collect();
    peers.dedup();
    for peer in peers {
        text.push_str(&format!("peer: {peer}\n"));
    }
    for (row, why) in rows.iter().filter_map(|row| Some((row, row.why_not.as_ref()?))) {
        text.push_str(&format!("{} was not taken: {why}\n", row.id));
    }
    text
}

fn cells(row: &Row) -> [String; 9] {
    let number = |figure: Option<f64>| figure.map_or("-".to_owned(), short);
    let met = row.met.map_or("-", |met| if met { "yes" } else { "NO" });
    [
        row.id.clone(),
        row.unit.to_string(),
        number(row.median),
        number(row.p99),
        row.runs.to_string(),
        number(row.thesis),
        against(row.peer, row.median),
        number(row.aim),
        met.to_owned(),
    ]
}

/// The peer's figure, and how many times ours it is.
fn against(peer: Option<f64>, ours: Option<f64>) -> String {
    match (peer, ours) {
        (Some(peer), Some(ours)) if ours > 0.0 => format!("{} ({:.1}x)", short(peer), peer / ours),
        (Some(peer), _) => short(peer),
        (None, _) => "-".to_owned(),
    }
}

/// Three digits that mean something.
pub fn short(figure: f64) -> String {
    match figure.abs() {
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        size if size >= 1.0 => format!("{figure:.2}"),
        _ => format!("{figure:.3}"),
    }
}

fn widths(lines: &[[String; 9]]) -> [usize; 9] {
    std::array::from_fn(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
}

fn aligned(line: &[String; 9], widths: &[usize; 9]) -> String {
    let first = format!("{:<width$}", line[0], width = widths[0]);
    let rest = line.iter().zip(widths).skip(1).map(|(cell, &width)| format!("  {cell:>width$}"));
    let text = std::iter::once(first).chain(rest).collect::<String>();
    format!("{}\n", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_peers_are_named_once() {
        let row = |id: &str| Row::measured(id, "ms", &[0.5]).thesis(15.1).peer("someone else", 5.8).aim(0.4);
        let text = render(&[row("short"), row("a longer one")]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[1].len(), lines[2].len(), "{text}");
        assert!(lines[1].contains("5.80 (11.6x)") && lines[1].ends_with("NO"), "{text}");
        assert_eq!(lines[3], "peer: someone else");
    }
}
