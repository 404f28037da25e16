//! `cargo xtask eval all`: every evaluation, one after the other, and one report of them.
//!
//! The report is written anew after each: whoever is ended early has one of what was taken until then. Nothing that
//! goes wrong in one evaluation ends the run; its chapter says what did.

use std::time::Instant;

use anyhow::{Result, bail};

use super::report::{self, CHAPTERS, Chapter};
use super::{EVALS, Eval, table, take, taken};

pub const NAME: &str = "all";

pub fn run(only: Option<&str>) -> Result<()> {
    let evals = asked_for(only)?;
    let begun = Instant::now();
    for (number, eval) in evals.iter().enumerate() {
        println!("── {} of {}: {}, {}", number + 1, evals.len(), eval.name, eval.what);
        let (taken, _) = take(eval)?;
        print!("{}", table::render(&taken.rows));
        println!("── {}: {:.0} s since the beginning\n", eval.name, begun.elapsed().as_secs_f64());
        report::write(&taken::directory()?)?;
    }
    render()
}

pub fn render() -> Result<()> {
    let dir = taken::directory()?;
    let summary = report::write(&dir)?;
    println!("{summary}");
    for name in report::FILES {
        println!("written to {}", dir.join(name).display());
    }
    Ok(())
}

/// Evaluations by their names and by those of chapters; all but the one that measures nothing without any.
fn asked_for(only: Option<&str>) -> Result<Vec<&'static Eval>> {
    let Some(only) = only else { return Ok(EVALS.iter().filter(|eval| eval.name != "published").collect()) };
    let names: Vec<&str> = only.split(',').map(str::trim).collect();
    for name in &names {
        if !EVALS.iter().any(|eval| is_asked_for(eval, name)) {
            bail!("neither figures nor a chapter are called {name:?}; these are known:\n{}", super::known());
        }
    }
    Ok(EVALS.iter().filter(|eval| names.iter().any(|name| is_asked_for(eval, name))).collect())
}

fn is_asked_for(eval: &Eval, name: &str) -> bool {
    let has = |chapter: &&Chapter| chapter.id == name && chapter.picks.iter().any(|(of, _)| *of == eval.name);
    eval.name == name || CHAPTERS.iter().any(|chapter| has(&chapter))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(only: Option<&str>) -> Vec<&'static str> {
        asked_for(only).expect("known names").iter().map(|eval| eval.name).collect()
    }

    #[test]
    fn a_chapter_asks_for_its_evaluations() {
        assert_eq!(names(Some("table-5.3")), ["pause"]);
        assert_eq!(names(Some("failover, table-5.6")), ["pause", "failover"]);
        assert!(!names(None).contains(&"published") && names(None).len() > 5);
        assert!(asked_for(Some("pause,table-9.9")).is_err());
    }
}
