//! The report as a text that any viewer shows.

use std::fmt::Write;

use super::super::Row;
use super::super::table::short;
use super::{Document, Section, words};

pub fn render(document: &Document) -> String {
    let mut text = format!("# CheckSync, measured\n\n{}.\n\n", document.summary());
    losses(document, &mut text);
    aims(document, &mut text);
    not_taken(document, &mut text);
    conditions(document, &mut text);
    for section in &document.sections {
        chapter(section, &mut text);
    }
    text
}

fn losses(document: &Document, text: &mut String) {
    text.push_str("## Where somebody else is better\n\n");
    let losses = document.losses();
    if losses.is_empty() {
        text.push_str("In no row that was taken.\n\n");
        return;
    }
    head(text, &["", "unit", "ours", "theirs", "better by", "who"]);
    for loss in &losses {
        let who = format!("{} – {}", loss.who, words::of_source(loss.quoted));
        let row = loss.row;
        let ours = words::of_figure(row.median);
        line(text, &[&row.id, &row.unit, &ours, &short(loss.theirs), &words::of_loss(loss), &who]);
    }
    text.push('\n');
}

fn aims(document: &Document, text: &mut String) {
    let (missed, met) = document.aims();
    text.push_str("## Aims\n\n");
    head(text, &["", "unit", "median", "aim", ""]);
    for row in missed.into_iter().chain(met) {
        let (median, aim) = (words::of_figure(row.median), words::of_figure(row.aim));
        line(text, &[&row.id, &row.unit, &median, &aim, &words::of_aim(row)]);
    }
    text.push('\n');
}

fn not_taken(document: &Document, text: &mut String) {
    let rows = document.not_taken();
    if rows.is_empty() {
        return;
    }
    text.push_str("## Not taken\n\n");
    for (row, why) in rows {
        let _ = writeln!(text, "- `{}`: {}", row.id, one_line(why));
    }
    text.push('\n');
}

fn conditions(document: &Document, text: &mut String) {
    text.push_str("## Conditions\n\n");
    head(text, &["evaluation", "taken", "s", "load before, after", "machine", "versions"]);
    for (eval, of) in &document.conditions {
        let form =
            format!("{}{}", if of.quick { ", quick" } else { "" }, if of.partly { ", in part" } else { "" });
        let machine =
            format!("{}, {} processors, {} GiB, {}", of.processor, of.processors, of.memory_gib, of.kernel);
        let versions: Vec<_> = of.versions.iter().map(|(name, says)| format!("{name}: {says}")).collect();
        let (taken, took) = (format!("{}{form}", of.taken_at), of.took_seconds.to_string());
        line(text, &[eval, &taken, &took, &of.load.join(", "), &machine, &versions.join("; ")]);
    }
    text.push('\n');
}

fn chapter(section: &Section, text: &mut String) {
    let _ = writeln!(text, "## {} ({})\n\n{}\n", section.title, section.id, section.about);
    if section.rows.is_empty() {
        text.push_str("Not taken yet.\n\n");
        return;
    }
    head(
        text,
        &["", "unit", "median", "p99", "least – most", "runs", "thesis", "peer", "aim", "who the peer is"],
    );
    let (first, rest) = section.split();
    for row in first.into_iter().chain(rest) {
        line(text, &cells(row).each_ref().map(String::as_str));
    }
    text.push('\n');
}

fn cells(row: &Row) -> [String; 10] {
    let median = if row.why_not.is_some() { "not taken".to_owned() } else { words::of_figure(row.median) };
    [
        row.id.clone(),
        row.unit.to_string(),
        median,
        words::of_figure(row.p99),
        words::of_spread(row),
        row.runs.to_string(),
        words::of_other(row.thesis, row),
        words::of_other(row.peer, row),
        format!("{} {}", words::of_figure(row.aim), words::of_aim(row)).trim().to_owned(),
        words::of_peer(row),
    ]
}

fn head(text: &mut String, names: &[&str]) {
    line(text, names);
    line(text, &vec!["---"; names.len()]);
}

fn line(text: &mut String, cells: &[&str]) {
    let cells: Vec<_> = cells.iter().map(|cell| one_line(cell)).collect();
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

/// A line break or a bar would end the cell.
fn one_line(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}
