//! What changed, as a tree for people: the mappings in which most changed first.

use super::changes::{
    About, DescriptorChange, MappingChange, MemoryChanges, Opened, ProcessChanges, Report, ThreadChange,
};
use super::files::FileChange;
use crate::verbs::describe::bytes;
use crate::verbs::outline::Node;

pub fn draw(report: &Report) -> String {
    let Report { from, to, .. } = report;
    let apps = if from.app == to.app { from.app.clone() } else { format!("{} and {}", from.app, to.app) };
    let mut root =
        Node::new(format!("{apps}, checkpoint {} to {}, {}", name(from), name(to), apart(from, to)));
    root.leaf(format!("from     {}", from.place));
    root.leaf(format!("to       {}", to.place));
    if report.same {
        root.leaf("nothing has changed but registers and clocks".to_owned());
        return root.draw();
    }
    root.children.push(memory(&report.memory, from, to));
    if !report.files.is_empty() {
        root.children.push(files(&report.files));
    }
    root.children.extend(report.processes.iter().map(process));
    root.draw()
}

fn name(about: &About) -> String {
    format!("{}.{}", about.term, about.epoch)
}

fn apart(from: &About, to: &About) -> String {
    let seconds = to.frozen_at_ns.abs_diff(from.frozen_at_ns) as f64 / 1e9;
    let order = if to.frozen_at_ns < from.frozen_at_ns { "earlier" } else { "later" };
    format!("{seconds:.1} s {order}")
}

fn memory(memory: &MemoryChanges, from: &About, to: &About) -> Node {
    let title = format!(
        "memory   {} changed in {} pages; {} mappings of {}, before {} of {}",
        bytes(memory.bytes_changed),
        memory.pages_changed,
        to.mappings,
        bytes(to.mapped_bytes),
        from.mappings,
        bytes(from.mapped_bytes),
    );
    let mut most: Vec<&MappingChange> = memory.mappings.iter().collect();
    most.sort_by_key(|one| std::cmp::Reverse((one.pages_changed, size(one))));
    Node::list(title, most.into_iter().map(mapping))
}

fn size(one: &MappingChange) -> u64 {
    one.after.as_ref().or(one.before.as_ref()).map_or(0, |extent| extent.bytes)
}

fn mapping(one: &MappingChange) -> String {
    let MappingChange { change, what, start, before, after, pages_changed, bytes_changed } = one;
    let place = start.map_or_else(|| "shared content".to_owned(), |start| format!("{start:#x}"));
    let size = match (before, after) {
        (Some(before), Some(after)) if before.bytes != after.bytes => {
            format!("{}, before {}", bytes(after.bytes), bytes(before.bytes))
        }
        _ => bytes(size(one)),
    };
    let protection = match (before, after) {
        (Some(before), Some(after)) if before.protection != after.protection => {
            format!(", {} instead of {}", after.protection, before.protection)
        }
        _ => String::new(),
    };
    let content = content(*pages_changed, *bytes_changed);
    format!("{:<8} {what} at {place}, {size}{protection}{content}", change.text())
}

fn files(files: &[FileChange]) -> Node {
    let bytes_changed: u64 = files.iter().map(|one| one.bytes_changed).sum();
    let mut most: Vec<&FileChange> = files.iter().collect();
    most.sort_by_key(|one| std::cmp::Reverse(one.pages_changed));
    let title =
        format!("files    {} changed in {} of the state directories", bytes(bytes_changed), files.len());
    Node::list(title, most.into_iter().map(file))
}

fn file(one: &FileChange) -> String {
    let FileChange { change, path, before, after, pages_changed, bytes_changed } = one;
    let said = match (before, after) {
        (Some(before), Some(after)) if before.bytes != after.bytes => {
            format!("{}, before {}", bytes(after.bytes), bytes(before.bytes))
        }
        (_, Some(shape)) | (Some(shape), None) if shape.kind == "file" => bytes(shape.bytes),
        (_, Some(shape)) | (Some(shape), None) => shape.kind.to_owned(),
        (None, None) => String::new(),
    };
    let content = content(*pages_changed, *bytes_changed);
    format!("{:<8} {path}, {said}{content}", change.text())
}

fn content(pages_changed: u64, bytes_changed: u64) -> String {
    match pages_changed {
        0 => String::new(),
        1 => format!(", {} changed in 1 page", bytes(bytes_changed)),
        pages => format!(", {} changed in {pages} pages", bytes(bytes_changed)),
    }
}

fn process(process: &ProcessChanges) -> Node {
    let ProcessChanges { pid, change, executable, threads, descriptors } = process;
    let change = change.map_or(String::new(), |change| format!(", {}", change.text()));
    let mut node = Node::new(format!("process {pid} {executable}{change}"));
    if !threads.is_empty() {
        node.children.push(Node::list("threads".to_owned(), threads.iter().map(thread)));
    }
    if !descriptors.is_empty() {
        node.children.push(Node::list("descriptors".to_owned(), descriptors.iter().map(descriptor)));
    }
    node
}

fn thread(one: &ThreadChange) -> String {
    let ThreadChange { change, tid, name, name_before } = one;
    let before = name_before.as_ref().map_or(String::new(), |before| format!(", before {before}"));
    format!("{:<8} {tid} {name}{before}", change.text())
}

fn descriptor(one: &DescriptorChange) -> String {
    let DescriptorChange { change, number, before, after } = one;
    let said = match (before, after) {
        (Some(before), Some(after)) if (before.kind, &before.what) == (after.kind, &after.what) => {
            format!("{}, at byte {}, before {}", opened(after), after.position, before.position)
        }
        (Some(before), Some(after)) => format!("{}, before {}", opened(after), opened(before)),
        (Some(only), None) | (None, Some(only)) => opened(only),
        (None, None) => String::new(),
    };
    format!("{:<8} {number:>4}  {said}", change.text())
}

fn opened(one: &Opened) -> String {
    format!("{} {}", one.kind, one.what).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::changes::{Change, Extent};
    use super::*;

    #[test]
    fn a_change_is_said_with_what_it_is_about() {
        let extent = |bytes| Some(Extent { bytes, protection: "rw-p".to_owned() });
        let grown = MappingChange {
            change: Change::Resized,
            what: "[heap]".to_owned(),
            start: Some(0x5000),
            before: extent(4096),
            after: extent(8192),
            pages_changed: 1,
            bytes_changed: 4096,
        };
        assert_eq!(
            mapping(&grown),
            "resized  [heap] at 0x5000, 8.0 KiB, before 4.0 KiB, 4.0 KiB changed in 1 page"
        );
        let open = |what: &str, position| Some(Opened { kind: "file", what: what.to_owned(), position });
        let written = DescriptorChange {
            change: Change::Changed,
            number: 3,
            before: open("/a", 1),
            after: open("/a", 9),
        };
        assert_eq!(descriptor(&written), "changed     3  file /a, at byte 9, before 1");
        let closed = DescriptorChange { change: Change::Gone, number: 3, before: open("/a", 1), after: None };
        assert_eq!(descriptor(&closed), "gone        3  file /a");
        let replaced = DescriptorChange { after: open("/b", 1), change: Change::Changed, ..written };
        assert_eq!(descriptor(&replaced), "changed     3  file /b, before file /a");
    }
}
