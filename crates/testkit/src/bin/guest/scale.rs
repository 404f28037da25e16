//! Many of one kind. Each takes the number as its first argument.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Barrier};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};
use rustix::mm::MprotectFlags;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::{Context, Guest, Outcome};
use crate::mapping::{Mapping, PAGE};
use crate::{ensure, ensure_eq};

pub const GUESTS: &[Guest] = &[
    Guest::new("many-threads", many_threads),
    Guest::new("many-descriptors", many_descriptors),
    Guest::new("many-mappings", many_mappings),
];

/// 1,000 threads, each of which knows its number.
fn many_threads(context: &mut Context) -> Outcome {
    let count = context.number(0, 1000);
    let meet = Arc::new(Barrier::new(usize::try_from(count)? + 1));
    let workers: Result<Vec<_>, _> = (0..count)
        .map(|number| {
            let meet = Arc::clone(&meet);
            let hold = move || {
                let kept = std::hint::black_box([number; 64]);
                meet.wait();
                meet.wait();
                kept.iter().sum::<u64>()
            };
            thread::Builder::new().stack_size(64 << 10).spawn(hold)
        })
        .collect();
    let workers = workers?;
    meet.wait();
    context.ready();
    meet.wait();
    for (number, worker) in (0..).zip(workers) {
        let found = worker.join().map_err(|_| format!("thread {number} panicked"))?;
        ensure_eq!(format!("sum of thread {number}"), found, number * 64);
    }
    Ok(())
}

/// 10,000 descriptors: counters that all hold another value, and files.
fn many_descriptors(context: &mut Context) -> Outcome {
    let count = context.number(0, 10_000);
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    let counters: Result<Vec<_>, _> =
        (1..=u32::try_from(count / 2)?).map(|value| eventfd(value, EventfdFlags::NONBLOCK)).collect();
    let counters = counters?;
    let files: Result<Vec<_>, _> = (0..count / 2).map(|_| File::open("/proc/self/exe")).collect();
    let files = files?;
    context.ready();
    for (counter, value) in counters.iter().zip(1_u64..) {
        let mut found = [0; 8];
        rustix::io::read(counter, &mut found)?;
        ensure_eq!(format!("eventfd {}", counter.as_raw_fd()), u64::from_ne_bytes(found), value);
    }
    for file in &files {
        ensure!(
            file.metadata().is_ok_and(|data| data.is_file()),
            "descriptor {} is no file",
            file.as_raw_fd()
        );
    }
    Ok(())
}

/// 20,000 mappings: pages of which every second one is read-only, so that no two can merge.
fn many_mappings(context: &mut Context) -> Outcome {
    let count = usize::try_from(context.number(0, 20_000))?;
    let memory = Mapping::anonymous(count * PAGE)?;
    memory.fill(1);
    for page in (0..count).step_by(2) {
        memory.protect(page * PAGE..(page + 1) * PAGE, MprotectFlags::READ)?;
    }
    let before = mappings(&memory, count)?;
    ensure!(before >= count, "the kernel merged {count} mappings into {before}");
    context.ready();
    ensure_eq!("number of mappings", mappings(&memory, count)?, before);
    ensure_eq!("first wrong page", memory.first_wrong(0..count, 1), None);
    Ok(())
}

/// How many mappings the memory consists of; what lies around it is the kernel's business to merge.
fn mappings(memory: &Mapping, pages: usize) -> std::io::Result<usize> {
    let inside = memory.range().start..memory.range().start + pages * PAGE;
    let text = std::fs::read_to_string("/proc/self/maps")?;
    let starts = text.lines().filter_map(|line| usize::from_str_radix(line.split('-').next()?, 16).ok());
    Ok(starts.filter(|start| inside.contains(start)).count())
}
