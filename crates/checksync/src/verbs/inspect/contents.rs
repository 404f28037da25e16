//! What is shown of a checkpoint: the frames of a file, summed up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use image::change::Slices;
use image::frame::FrameError;
use image::layout::{Layout, LayoutPart, Mapping};
use image::process::{Process, Thread};
use image::state::State;
use image::{CheckpointId, Frame, FrameKind, Header, PAGE_BYTES, PageBatch, PageTarget};
use serde::Serialize;
use store::Tree;

use crate::verbs::describe::{self, Fate};
use crate::verbs::one_shot::{OneShotError, Reader};
use crate::verbs::stored::Stored;

#[derive(Debug, Serialize)]
pub struct Contents {
    pub schema: u32,
    pub file: PathBuf,
    pub bytes: u64,
    pub frames: u64,
    pub app: String,
    pub term: u64,
    pub epoch: u64,
    /// Nanoseconds since 1970.
    pub frozen_at_ns: u64,
    pub memory: Memory,
    pub state_directories: Vec<DirectoryContents>,
    pub processes: Vec<ProcessContents>,
    pub pipes: usize,
}

#[derive(Debug, Default, Serialize)]
pub struct Memory {
    /// Page data in the file.
    pub pages: u64,
    pub page_bytes: u64,
    pub mapped_bytes: u64,
    pub mappings: Vec<MappingContents>,
}

#[derive(Debug, Serialize)]
pub struct DirectoryContents {
    pub path: String,
    /// With directories, links and FIFOs.
    pub files: usize,
    /// The sum of their sizes.
    pub bytes: u64,
}

#[derive(Debug, Serialize)]
pub struct MappingContents {
    pub space: u32,
    pub start: u64,
    pub end: u64,
    pub protection: String,
    pub what: String,
}

#[derive(Debug, Serialize)]
pub struct ProcessContents {
    pub pid: i32,
    pub executable: String,
    pub go: bool,
    pub user: u32,
    pub directory: String,
    pub threads: Vec<ThreadContents>,
    pub descriptors: Vec<DescriptorContents>,
}

#[derive(Debug, Serialize)]
pub struct ThreadContents {
    pub tid: i32,
    pub name: String,
}

#[derive(Debug, Serialize)]
pub struct DescriptorContents {
    pub number: i32,
    pub kind: &'static str,
    pub what: String,
    pub socket: bool,
    /// What becomes of it at a restore.
    pub fate: Fate,
}

/// Reads a checkpoint whole. Nothing is shown of one that is damaged anywhere.
pub fn read(path: &Path) -> Result<Contents, OneShotError> {
    let mut reader = Reader::open(path)?;
    let (header, _) = reader.header()?;
    let mut sum = Sum::default();
    while let Some(frame) = reader.next_frame()? {
        sum.add(&frame).map_err(|why| reader.damaged(why))?;
    }
    let state = sum.state.join(None).map_err(|why| reader.damaged(why))?;
    let processes = processes(&state).map_err(|why| reader.damaged(why))?;
    Ok(sum.contents(path.to_owned(), reader.progress(), header, &state, processes))
}

/// The same of a checkpoint from a store, which was verified when it was fetched.
pub fn of_stored(stored: &Stored) -> anyhow::Result<Contents> {
    let mut sum = Sum::default();
    let mut frames = 0;
    for frame in stored.gathered.frames() {
        sum.add(&Frame::parse(frame?)?)?;
        frames += 1;
    }
    let state = sum.state.join(None)?;
    let processes = processes(&state)?;
    let header = stored.header.clone();
    let place = PathBuf::from(&stored.name);
    let contents = sum.contents(place, (frames, stored.stored_bytes), header, &state, processes);
    Ok(Contents { state_directories: directories(stored.gathered.tree()), ..contents })
}

#[derive(Default)]
struct Sum {
    pages: u64,
    /// The last one of each address space is the one that counts.
    layouts: BTreeMap<u32, Layout>,
    /// The parts of a layout of which more are to come.
    parts: Vec<Mapping>,
    state: Slices,
}

impl Sum {
    fn add(&mut self, frame: &Frame) -> Result<(), FrameError> {
        match frame.kind {
            FrameKind::Header | FrameKind::Files | FrameKind::Shipped | FrameKind::End => (),
            FrameKind::Layout => {
                let LayoutPart { mut layout, more } = frame.decode("layout")?;
                self.parts.append(&mut layout.mappings);
                if !more {
                    layout.mappings = std::mem::take(&mut self.parts);
                    self.layouts.insert(layout.space, layout);
                }
            }
            FrameKind::Pages => {
                let batch = PageBatch::decode(frame.payload.clone())?;
                let of_memory = !matches!(batch.target, PageTarget::File(_));
                self.pages += batch.pages.iter().filter(|_| of_memory).map(carried).sum::<u64>();
            }
            FrameKind::State | FrameKind::StateChange => self.state.take(frame)?,
        }
        Ok(())
    }

    fn contents(
        self,
        file: PathBuf,
        (frames, bytes): (u64, u64),
        header: Header,
        state: &State,
        processes: Vec<ProcessContents>,
    ) -> Contents {
        let CheckpointId { term, epoch } = header.id;
        Contents {
            schema: 1,
            file,
            bytes,
            frames,
            app: header.app,
            term: term.0,
            epoch: epoch.0,
            frozen_at_ns: state.clocks.realtime_ns,
            memory: self.memory(),
            state_directories: Vec::new(),
            processes,
            pipes: state.pipes.len(),
        }
    }

    fn memory(self) -> Memory {
        let mut memory =
            Memory { pages: self.pages, page_bytes: self.pages * PAGE_BYTES, ..Memory::default() };
        for layout in self.layouts.values() {
            for mapping in &layout.mappings {
                memory.mapped_bytes += mapping.range.len_bytes();
                memory.mappings.push(MappingContents {
                    space: layout.space,
                    start: mapping.range.start,
                    end: mapping.range.end,
                    protection: describe::protection(mapping),
                    what: describe::mapping(mapping, layout),
                });
            }
        }
        memory
    }
}

fn directories(tree: &Tree) -> Vec<DirectoryContents> {
    let all = tree.files();
    let contents = |path: &Path| {
        let files: Vec<u64> = all
            .iter()
            .filter(|(at, _)| at.starts_with(path))
            .map(|(_, it)| it.kind.size_bytes().unwrap_or(0))
            .collect();
        DirectoryContents { path: path.display().to_string(), files: files.len(), bytes: files.iter().sum() }
    };
    tree.directories().map(contents).collect()
}

fn carried(pages: &image::batch::Pages) -> u64 {
    match pages {
        image::batch::Pages::Whole { range, .. } => range.pages(),
        image::batch::Pages::Lines { .. } => 1,
        image::batch::Pages::Gone { .. } => 0,
    }
}

fn processes(state: &State) -> Result<Vec<ProcessContents>, FrameError> {
    state.processes.iter().map(|process| process_contents(process, state)).collect()
}

fn process_contents(process: &Process, state: &State) -> Result<ProcessContents, FrameError> {
    let user = process.threads.first().map_or(0, |leader| leader.credentials.users[1]);
    let thread = |thread: &Thread| ThreadContents {
        tid: thread.tid,
        name: describe::text(thread.attributes.name.split(|&byte| byte == 0).next().unwrap_or_default()),
    };
    Ok(ProcessContents {
        pid: process.pid,
        executable: describe::text(&process.attributes.executable),
        go: process.attributes.go,
        user,
        directory: describe::text(&process.filesystem.working_directory),
        threads: process.threads.iter().map(thread).collect(),
        descriptors: descriptors(process, state)?,
    })
}

fn descriptors(process: &Process, state: &State) -> Result<Vec<DescriptorContents>, FrameError> {
    let of = |descriptor: &image::descriptor::Descriptor| {
        let why = format!("fd {} is file {}, which is not in it", descriptor.number, descriptor.file);
        let file = state.files.get(descriptor.file as usize);
        let file = file.ok_or(FrameError::Decode { what: "state", why })?;
        let (kind, what, fate) = describe::open_file(file);
        let socket = describe::is_socket(&file.kind);
        Ok(DescriptorContents { number: descriptor.number, kind, what, socket, fate })
    };
    process.descriptors.iter().map(of).collect()
}
