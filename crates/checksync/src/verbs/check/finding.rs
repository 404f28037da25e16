//! One line of a check, and all of them.

use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    Host,
    /// A running process, or a program that is to become one.
    Process,
    Peer,
    Register,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Green,
    /// It works, but less well.
    Yellow,
    /// It does not work.
    Red,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub area: Area,
    pub level: Level,
    pub what: String,
    /// What was found; on a line that is not green, the cause.
    pub found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    pub fn green(area: Area, what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { area, level: Level::Green, what: what.into(), found: found.into(), fix: None }
    }

    pub fn yellow(
        area: Area,
        what: impl Into<String>,
        cause: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        let fix = Some(fix.into());
        Self { area, level: Level::Yellow, what: what.into(), found: cause.into(), fix }
    }

    pub fn red(
        area: Area,
        what: impl Into<String>,
        cause: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { level: Level::Red, ..Self::yellow(area, what, cause, fix) }
    }

    pub fn red_by(area: Area, what: impl Into<String>, error: &dyn std::error::Error) -> Self {
        let (cause, fix) = cause_and_fix(error);
        Self::red(area, what, cause, fix.unwrap_or_else(|| "see the cause".to_owned()))
    }
}

/// Our refusals are of the form `cause; way out`, and what is behind them belongs to the cause.
pub fn cause_and_fix(error: &dyn std::error::Error) -> (String, Option<String>) {
    let text = error.to_string();
    let (cause, fix) = text.split_once("; ").map_or((&*text, None), |(cause, fix)| (cause, Some(fix)));
    let behind = error.source().map_or(String::new(), |source| format!(": {}", chain(source)));
    (format!("{cause}{behind}"), fix.map(str::to_owned))
}

/// An error with what is behind it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub schema: u32,
    /// Nothing is red.
    pub fit: bool,
    pub findings: Vec<Finding>,
}

const TITLES: [(Area, &str); 4] =
    [(Area::Host, "host"), (Area::Process, "process"), (Area::Peer, "standby"), (Area::Register, "register")];

impl Report {
    pub fn new(findings: Vec<Finding>) -> Self {
        let fit = findings.iter().all(|finding| finding.level != Level::Red);
        Self { schema: 1, fit, findings }
    }

    pub fn text(&self) -> String {
        let width = self.findings.iter().map(|finding| finding.what.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for (area, title) in TITLES {
            let mut findings = self.findings.iter().filter(|finding| finding.area == area).peekable();
            if findings.peek().is_some() {
                text += &format!("{title}\n");
            }
            for finding in findings {
                text += &line(finding, width);
            }
        }
        text + if self.fit { "fit\n" } else { "not fit: see the red lines\n" }
    }
}

fn line(finding: &Finding, width: usize) -> String {
    let Finding { level, what, found, fix, .. } = finding;
    let level = match level {
        Level::Green => "green ",
        Level::Yellow => "yellow",
        Level::Red => "red   ",
    };
    let mut text = format!("  {level}  {what:<width$}  {found}\n");
    if let Some(fix) = fix {
        text += &format!("          {:width$}  fix: {fix}\n", "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn red_line_has_its_cause_and_its_fix() {
        let refusal = checkpoint::Unsupported {
            pid: 7,
            what: "fd 9 is an io_uring".to_owned(),
            way_out: "switch it off".to_owned(),
        };
        let report = Report::new(vec![Finding::red_by(Area::Process, "descriptors", &refusal)]);
        assert!(!report.fit);
        assert_eq!(
            report.text(),
            "process\n  red     descriptors  cannot protect pid 7: fd 9 is an io_uring\n                       \
             fix: switch it off\nnot fit: see the red lines\n"
        );
    }

    #[test]
    fn yellow_lines_leave_a_host_fit() {
        assert!(Report::new(vec![Finding::yellow(Area::Host, "a", "b", "c")]).fit);
    }
}
