//! The report: target/eval/report.html, report.md and report.json, made from the files of the evaluations alone.
//!
//! A [`Chapter`] is a table or a figure of the thesis, or one beyond it, and picks its rows out of those files. What
//! no chapter picks is shown in the last one, so that nothing that was measured stays unseen. First of all come the
//! rows in which somebody else is better.

mod chapters;
mod chart;
mod html;
mod markdown;
mod words;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

pub use chapters::{CHAPTERS, Chapter};

use super::conditions::Conditions;
use super::taken::Taken;
use super::{EVALS, Row};

pub const FILES: [&str; 3] = ["report.html", "report.md", "report.json"];

/// All that the report says.
#[derive(Debug, Serialize)]
pub struct Document {
    schema: u32,
    sections: Vec<Section>,
    /// By evaluation.
    conditions: BTreeMap<&'static str, Conditions>,
}

#[derive(Debug, Serialize)]
pub struct Section {
    id: &'static str,
    title: &'static str,
    about: &'static str,
    /// The evaluations that its rows are of.
    evals: Vec<&'static str>,
    rows: Vec<Row>,
    #[serde(skip)]
    chapter: Option<&'static Chapter>,
}

/// Somebody who is better than we are, or as good as nobody measured here.
#[derive(Debug)]
pub struct Loss<'a> {
    row: &'a Row,
    who: &'a str,
    theirs: f64,
    quoted: bool,
}

/// Writes all three files; what it comes to, in one line.
pub fn write(dir: &Path) -> Result<String> {
    let document = Document::of(dir);
    let json = serde_json::to_string_pretty(&document).context("a report that is no JSON")? + "\n";
    for (name, text) in FILES.iter().zip([html::render(&document), markdown::render(&document), json]) {
        fs::write(dir.join(name), text)
            .with_context(|| format!("cannot write {}", dir.join(name).display()))?;
    }
    Ok(document.summary())
}

impl Document {
    fn of(dir: &Path) -> Self {
        let files = EVALS.iter().filter_map(|eval| Some((eval.name, Taken::earlier(dir, eval.name)?)));
        Self::from(files.filter(|(name, _)| *name != "published").collect())
    }

    fn from(files: Vec<(&'static str, Taken)>) -> Self {
        let mut sections: Vec<Section> = CHAPTERS.iter().map(Section::of).collect();
        let mut rest = Section::rest();
        let mut conditions = BTreeMap::new();
        for (eval, taken) in files {
            if let Some(found) = taken.conditions {
                conditions.insert(eval, found);
            }
            for row in taken.rows {
                let picks = |section: &&mut Section| section.picks(eval, &row);
                sections.iter_mut().find(picks).unwrap_or(&mut rest).add(eval, row);
            }
        }
        sections.push(rest);
        sections.retain(|section| section.chapter.is_some() || !section.rows.is_empty());
        Self { schema: 1, sections, conditions }
    }

    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.sections.iter().flat_map(|section| &section.rows)
    }

    fn losses(&self) -> Vec<Loss<'_>> {
        self.rows().flat_map(losses).collect()
    }

    /// Those with an aim: missed ones, then met ones.
    fn aims(&self) -> (Vec<&Row>, Vec<&Row>) {
        self.rows().filter(|row| row.met.is_some()).partition(|row| row.met == Some(false))
    }

    fn not_taken(&self) -> Vec<(&Row, &str)> {
        self.rows().filter_map(|row| Some((row, row.why_not.as_deref()?))).collect()
    }

    fn summary(&self) -> String {
        let (missed, met) = self.aims();
        let taken = self.rows().filter(|row| row.median.is_some()).count();
        format!(
            "{taken} figures; {} aims met, {} missed; somebody else is better in {} rows; {} could not be taken",
            met.len(),
            missed.len(),
            self.losses().len(),
            self.not_taken().len()
        )
    }
}

fn losses(row: &Row) -> Vec<Loss<'_>> {
    let peer = row.peer.map(|theirs| Loss {
        row,
        who: row.peer_name.as_deref().unwrap_or("a peer"),
        theirs,
        quoted: !row.peer_measured,
    });
    let thesis = row.thesis.map(|theirs| Loss { row, who: "the thesis", theirs, quoted: true });
    peer.into_iter().chain(thesis).filter(|loss| row.loses_to(Some(loss.theirs))).collect()
}

impl Section {
    fn of(chapter: &'static Chapter) -> Self {
        let Chapter { id, title, about, .. } = chapter;
        Self { id, title, about, evals: Vec::new(), rows: Vec::new(), chapter: Some(chapter) }
    }

    fn rest() -> Self {
        let about = "What was measured besides.";
        Self {
            id: "rest",
            title: "Everything else",
            about,
            evals: Vec::new(),
            rows: Vec::new(),
            chapter: None,
        }
    }

    /// The row of an evaluation that failed as a whole belongs to the first chapter that it would have filled.
    fn picks(&self, eval: &str, row: &Row) -> bool {
        let picks = self.chapter.map_or(&[][..], |chapter| chapter.picks);
        let mut picks = picks.iter().filter(|(of, _)| *of == eval);
        picks.any(|(_, beginning)| row.id.starts_with(beginning) || row.id == eval)
    }

    fn add(&mut self, eval: &'static str, row: Row) {
        if !self.evals.contains(&eval) {
            self.evals.push(eval);
        }
        self.rows.push(row);
    }

    fn pictures(&self) -> Vec<String> {
        let charts = self.chapter.map_or(&[][..], |chapter| chapter.charts);
        charts.iter().filter_map(|chart| chart(&self.rows)?.svg()).collect()
    }

    /// Rows that stand beside something, and those that say what a figure is made of.
    fn split(&self) -> (Vec<&Row>, Vec<&Row>) {
        let stands_beside =
            |row: &&Row| row.thesis.or(row.peer).or(row.aim).is_some() || row.why_not.is_some();
        let (first, rest): (Vec<&Row>, Vec<&Row>) = self.rows.iter().partition(stands_beside);
        if first.is_empty() { (rest, first) } else { (first, rest) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Document {
        let pause = Row::measured("pause-1k", "ms", &[0.6, 0.7, 0.8]).thesis(15.1).peer("CRIU", 0.5).aim(0.5);
        let odd = Row::rate("odd", "/s", &[5.0]).peer_here("redis", 7.0);
        let rows = vec![pause, odd, Row::not_taken("pause-10M", "no <memory>")];
        let taken = Taken { conditions: Some(Conditions::default()), rows };
        Document::from(vec![("pause", taken)])
    }

    #[test]
    fn every_row_is_in_one_chapter_and_those_of_none_in_the_last() {
        let document = document();
        let place = |id: &str| {
            let of = document.sections.iter().filter(|section| section.rows.iter().any(|row| row.id == id));
            of.map(|section| section.id).collect::<Vec<_>>()
        };
        assert_eq!(place("pause-1k"), ["table-5.3"]);
        assert_eq!(place("odd"), ["rest"]);
    }

    #[test]
    fn who_is_better_is_named_with_how_its_figure_came() {
        let document = document();
        let losses: Vec<_> = document.losses().iter().map(|loss| (loss.who, loss.quoted)).collect();
        assert_eq!(losses, [("CRIU", true), ("redis", false)]);
        assert!(
            document.summary().contains("0 aims met, 1 missed") && document.summary().contains("1 could not")
        );
    }

    #[test]
    fn all_forms_say_what_is_missed_lost_and_missing() {
        let document = document();
        for text in [html::render(&document), markdown::render(&document)] {
            for wanted in ["pause-1k", "missed by 40 %", "redis", "CRIU", "quoted", "measured here", "no "] {
                assert!(text.contains(wanted), "{wanted}: {text}");
            }
            // Losses come before all chapters.
            assert!(text.find("redis") < text.find(CHAPTERS[0].title), "{text}");
        }
        assert!(html::render(&document).contains("no &lt;memory&gt;"));
    }

    #[test]
    fn the_page_needs_nothing_but_itself() {
        let page = html::render(&document());
        for outside in ["src=", "href=\"http", "<link", "<script", "@import"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn chapters_pick_from_evaluations_that_there_are() {
        for chapter in CHAPTERS {
            for (eval, _) in chapter.picks {
                assert!(EVALS.iter().any(|known| known.name == *eval), "{}: {eval}", chapter.id);
            }
            assert_eq!(CHAPTERS.iter().filter(|other| other.id == chapter.id).count(), 1, "{}", chapter.id);
        }
    }
}
