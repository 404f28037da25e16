//! The report as one page that needs nothing else: no script, no font, no picture from elsewhere.

use std::fmt::Write;

use super::super::Row;
use super::super::table::short;
use super::chart::escaped;
use super::{Document, Section, words};

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2em; border-bottom: 1px solid #d1d9e0; padding-bottom: .2em; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .7em; border-bottom: 1px solid #e4e8ec; text-align: right; }
th:first-child, td:first-child, td.text, th.text { text-align: left; } th { color: #59636e; font-weight: 600; }
tr.missed td { background: #fff1f0; } tr.met td { background: #f0fbf2; } tr.absent td { color: #8c959f; }
svg { width: 100%; max-width: 760px; display: block; margin: 1em 0; font: 11px system-ui, sans-serif; fill: #1f2328; }
svg .grid { stroke: #e4e8ec; stroke-width: 1; } svg .mid { text-anchor: middle; } svg .end { text-anchor: end; }
nav a { margin-right: 1em; white-space: nowrap; } .sum { font-size: 17px; } details { margin: 1em 0; }
summary { cursor: pointer; color: #59636e; } .about { max-width: 50em; }
";

pub fn render(document: &Document) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>CheckSync, measured</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head><body>\n\
         <h1>CheckSync, measured</h1>\n<p class=\"sum\">{}.</p>\n",
        escaped(&document.summary())
    );
    page.push_str(
        "<p class=\"about\">Each row has the thesis's figure (always quoted), ours, and a peer's: measured in the same \
         session on this machine, or quoted, as it says. Less is better, but for rates. Rows with a red ground missed \
         their aim.</p>\n",
    );
    contents(document, &mut page);
    losses(document, &mut page);
    aims(document, &mut page);
    not_taken(document, &mut page);
    for section in &document.sections {
        chapter(section, &mut page);
    }
    conditions(document, &mut page);
    page.push_str("</body></html>\n");
    page
}

fn contents(document: &Document, page: &mut String) {
    page.push_str("<nav>");
    for section in &document.sections {
        let _ = write!(page, "<a href=\"#{0}\">{0}</a> ", section.id);
    }
    page.push_str("<a href=\"#conditions\">conditions</a></nav>\n");
}

fn losses(document: &Document, page: &mut String) {
    page.push_str("<h2>Where somebody else is better</h2>\n");
    let losses = document.losses();
    if losses.is_empty() {
        page.push_str("<p>In no row that was taken.</p>\n");
        return;
    }
    table(page, &["", "unit", "ours", "theirs", "better by", "who"], |page| {
        for loss in &losses {
            let who = format!("{} – {}", loss.who, words::of_source(loss.quoted));
            let row = loss.row;
            let ours = words::of_figure(row.median);
            line(page, "", &[&row.id, &row.unit, &ours, &short(loss.theirs), &words::of_loss(loss), &who]);
        }
    });
}

fn aims(document: &Document, page: &mut String) {
    let (missed, met) = document.aims();
    page.push_str("<h2>Aims</h2>\n");
    table(page, &["", "unit", "median", "aim", ""], |page| {
        for row in missed.into_iter().chain(met) {
            let (median, aim) = (words::of_figure(row.median), words::of_figure(row.aim));
            line(page, class(row), &[&row.id, &row.unit, &median, &aim, &words::of_aim(row)]);
        }
    });
}

fn not_taken(document: &Document, page: &mut String) {
    let rows = document.not_taken();
    if rows.is_empty() {
        return;
    }
    page.push_str("<h2>Not taken</h2>\n<ul>\n");
    for (row, why) in rows {
        let _ = writeln!(page, "<li><b>{}</b>: {}</li>", escaped(&row.id), escaped(why));
    }
    page.push_str("</ul>\n");
}

fn chapter(section: &Section, page: &mut String) {
    let (id, title) = (section.id, escaped(section.title));
    let _ = writeln!(page, "<h2 id=\"{id}\">{title} <small>({id})</small></h2>");
    let _ = writeln!(page, "<p class=\"about\">{}</p>", escaped(section.about));
    if section.rows.is_empty() {
        page.push_str("<p>Not taken yet.</p>\n");
        return;
    }
    section.pictures().iter().for_each(|picture| page.push_str(picture));
    let (first, rest) = section.split();
    rows(page, &first);
    if !rest.is_empty() {
        let _ =
            writeln!(page, "<details><summary>{} rows more: what these are made of</summary>", rest.len());
        rows(page, &rest);
        page.push_str("</details>\n");
    }
}

fn rows(page: &mut String, rows: &[&Row]) {
    let names =
        ["", "unit", "median", "p99", "least – most", "runs", "thesis", "peer", "aim", "", "who the peer is"];
    table(page, &names, |page| {
        for row in rows {
            let median =
                if row.why_not.is_some() { "not taken".to_owned() } else { words::of_figure(row.median) };
            let cells = [
                &row.id,
                row.unit.as_ref(),
                &median,
                &words::of_figure(row.p99),
                &words::of_spread(row),
                &row.runs.to_string(),
                &words::of_other(row.thesis, row),
                &words::of_other(row.peer, row),
                &words::of_figure(row.aim),
                &words::of_aim(row),
                &words::of_peer(row),
            ];
            line(page, class(row), &cells);
        }
    });
}

fn class(row: &Row) -> &'static str {
    match (row.met, &row.why_not) {
        (_, Some(_)) => "absent",
        (Some(true), None) => "met",
        (Some(false), None) => "missed",
        (None, None) => "",
    }
}

fn conditions(document: &Document, page: &mut String) {
    page.push_str("<h2 id=\"conditions\">Conditions</h2>\n");
    let names = ["evaluation", "taken", "took, s", "load before, after", "machine", "versions"];
    table(page, &names, |page| {
        for (eval, of) in &document.conditions {
            let form = format!(
                "{}{}",
                if of.quick { ", quick" } else { "" },
                if of.partly { ", in part" } else { "" }
            );
            let machine = format!(
                "{}, {} processors, {} GiB, {}",
                of.processor, of.processors, of.memory_gib, of.kernel
            );
            let versions: Vec<_> = of.versions.iter().map(|(name, says)| format!("{name}: {says}")).collect();
            let (taken, took) = (format!("{}{form}", of.taken_at), of.took_seconds.to_string());
            line(page, "", &[eval, &taken, &took, &of.load.join(", "), &machine, &versions.join("; ")]);
        }
    });
}

fn table(page: &mut String, names: &[&str], body: impl FnOnce(&mut String)) {
    page.push_str("<table>\n<tr>");
    for name in names {
        let _ = write!(page, "<th>{}</th>", escaped(name));
    }
    page.push_str("</tr>\n");
    body(page);
    page.push_str("</table>\n");
}

fn line(page: &mut String, class: &str, cells: &[&str]) {
    let _ = write!(page, "<tr class=\"{class}\">");
    for cell in cells {
        let _ = write!(page, "<td>{}</td>", escaped(cell));
    }
    page.push_str("</tr>\n");
}
