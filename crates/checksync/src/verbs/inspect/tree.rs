//! A checkpoint as a tree for people: what is there, how much of it, and under which name.

use std::collections::BTreeMap;

use super::contents::{Contents, DescriptorContents, DirectoryContents, Memory, ProcessContents};
use crate::verbs::describe::bytes;
use crate::verbs::outline::Node;

pub fn draw(contents: &Contents) -> String {
    let Contents { app, term, epoch, frames, file, .. } = contents;
    let mut root = Node::new(format!("{app}, checkpoint {term}/{epoch}"));
    root.leaf(format!("file     {}, {} in {frames} frames", file.display(), bytes(contents.bytes)));
    root.leaf(format!("frozen   {}", moment(contents.frozen_at_ns)));
    root.children.push(memory(&contents.memory));
    for DirectoryContents { path, files, bytes: len } in &contents.state_directories {
        root.leaf(format!("state    {path}, {} in {files} files", bytes(*len)));
    }
    root.children.extend(contents.processes.iter().map(process));
    root.draw()
}

fn memory(memory: &Memory) -> Node {
    let title = format!(
        "memory   {} in {} pages, {} mappings of {}",
        bytes(memory.page_bytes),
        memory.pages,
        memory.mappings.len(),
        bytes(memory.mapped_bytes)
    );
    let mut by_backing: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for mapping in &memory.mappings {
        let (count, bytes) = by_backing.entry(&mapping.what).or_default();
        *count += 1;
        *bytes += mapping.end.saturating_sub(mapping.start);
    }
    let mut largest: Vec<_> = by_backing.into_iter().collect();
    largest.sort_by_key(|&(what, (_, bytes))| (std::cmp::Reverse(bytes), what));
    let line =
        |(what, (count, len)): (&str, (usize, u64))| format!("{:>10}  {count:>4} × {what}", bytes(len));
    Node::list(title, largest.into_iter().map(line))
}

fn process(process: &ProcessContents) -> Node {
    let go = if process.go { ", Go" } else { "" };
    let title = format!("process {} {} (user {}{go})", process.pid, process.executable, process.user);
    let mut node = Node::new(title);
    node.leaf(format!("directory {}", process.directory));
    let threads = process.threads.iter().map(|thread| format!("{} {}", thread.tid, thread.name));
    node.children.push(Node::list(format!("threads  {}", process.threads.len()), threads));
    let (sockets, files): (Vec<_>, Vec<_>) = process.descriptors.iter().partition(|one| one.socket);
    for (title, list) in [("files", files), ("sockets", sockets)] {
        node.children
            .push(Node::list(format!("{title:<8} {}", list.len()), list.into_iter().map(descriptor)));
    }
    node
}

fn descriptor(one: &DescriptorContents) -> String {
    format!("{:>4}  {:<9}  {} {}", one.number, one.fate.text(), one.kind, one.what).trim_end().to_owned()
}

/// A wall clock's time, in UTC.
fn moment(ns: u64) -> String {
    const DAY_SECONDS: u64 = 86_400;
    let seconds = ns / 1_000_000_000;
    let (year, month, day) = date((seconds / DAY_SECONDS) as i64);
    let of_day = seconds % DAY_SECONDS;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let millis = ns / 1_000_000 % 1000;
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{millis:03} UTC")
}

/// Days since 1970 as a date of the Gregorian calendar, by Howard Hinnant's `civil_from_days`: years begin in
/// March, so that the leap day is the last of its year.
fn date(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates_also_on_leap_days() {
        assert_eq!(moment(0), "1970-01-01 00:00:00.000 UTC");
        assert_eq!(moment(951_827_696_789_000_000), "2000-02-29 12:34:56.789 UTC");
        assert_eq!(moment(1_767_225_599_999_000_000), "2025-12-31 23:59:59.999 UTC");
    }
}
