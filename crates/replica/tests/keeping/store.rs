//! A store, as far as rights depend on it: runs, what is in them, and which are closed. What is asked of it takes effect
//! some time after it was sent, perhaps twice, perhaps much later, and perhaps nobody hears of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use image::CheckpointId;

/// In the order in which runs begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunName {
    pub number: u64,
    pub term: u64,
    pub incarnation: u64,
}

#[derive(Debug, Clone, Default)]
struct Contents {
    manifests: BTreeSet<CheckpointId>,
    closed: Option<BTreeSet<CheckpointId>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Which runs there are.
    Runs,
    Begin(RunName),
    /// What is in it, for whoever closes it.
    Shelf(RunName),
    Close(RunName, BTreeSet<CheckpointId>),
    Put(RunName, CheckpointId),
    /// The newest checkpoint of all.
    Newest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Runs(Vec<RunName>),
    Done,
    /// None: it is closed already.
    Shelf(Option<BTreeSet<CheckpointId>>),
    Newest(Option<(RunName, CheckpointId)>),
    /// It may have taken effect, or will.
    Failed,
}

#[derive(Debug, Default)]
pub struct Objects(BTreeMap<RunName, Contents>);

impl Objects {
    pub fn answer(&mut self, request: Request) -> Reply {
        match request {
            Request::Runs => Reply::Runs(self.0.keys().copied().collect()),
            Request::Begin(run) => {
                self.0.entry(run).or_default();
                Reply::Done
            }
            Request::Shelf(run) => {
                let open = self.0.get(&run).filter(|contents| contents.closed.is_none());
                Reply::Shelf(open.map(|contents| contents.manifests.clone()))
            }
            // Without conditional puts the later list stands.
            Request::Close(run, list) => {
                self.0.entry(run).or_default().closed = Some(list);
                Reply::Done
            }
            Request::Put(run, id) => {
                self.0.entry(run).or_default().manifests.insert(id);
                Reply::Done
            }
            Request::Newest => {
                let counts = |contents: &Contents, id: &CheckpointId| {
                    contents.closed.as_ref().is_none_or(|closed| closed.contains(id))
                };
                let newest =
                    |contents: &Contents| contents.manifests.iter().rfind(|id| counts(contents, id)).copied();
                Reply::Newest(self.0.iter().rev().find_map(|(run, contents)| Some((*run, newest(contents)?))))
            }
        }
    }
}

/// A run is begun, and those before it are closed: step by step, as `store::Run::begin` does it.
#[derive(Debug, Clone)]
pub struct Beginning {
    name: RunName,
    earlier: VecDeque<RunName>,
    asked: Asked,
    /// A flaw: a later term is no reason not to begin.
    pub unchecked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Runs,
    Begin,
    Shelf,
    Close,
}

pub enum Begun {
    Next(Request),
    There(RunName),
    Failed,
}

impl Beginning {
    pub fn new(term: u64, incarnation: u64) -> (Self, Request) {
        let name = RunName { number: 1, term, incarnation };
        (Self { name, earlier: VecDeque::new(), asked: Asked::Runs, unchecked: false }, Request::Runs)
    }

    pub fn take(&mut self, reply: Reply) -> Begun {
        match (self.asked, reply) {
            // Whoever has a later term is the one who restores.
            (Asked::Runs, Reply::Runs(runs))
                if !self.unchecked && runs.last().is_some_and(|last| last.term > self.name.term) =>
            {
                return Begun::Failed;
            }
            (Asked::Runs, Reply::Runs(runs)) => {
                self.name.number = runs.last().map_or(1, |last| last.number + 1);
                (self.earlier, self.asked) = (runs.into(), Asked::Begin);
                return Begun::Next(Request::Begin(self.name));
            }
            (Asked::Shelf, Reply::Shelf(Some(list))) => {
                self.asked = Asked::Close;
                return Begun::Next(Request::Close(self.earlier[0], list));
            }
            (Asked::Begin, Reply::Done) => {}
            (Asked::Shelf, Reply::Shelf(None)) | (Asked::Close, Reply::Done) => {
                self.earlier.pop_front();
            }
            _ => return Begun::Failed,
        }
        self.asked = Asked::Shelf;
        match self.earlier.front() {
            Some(run) => Begun::Next(Request::Shelf(*run)),
            None => Begun::There(self.name),
        }
    }
}

/// Whether a run has begun after this one.
pub fn later(reply: &Reply, run: RunName) -> Option<bool> {
    match reply {
        Reply::Runs(runs) => Some(runs.last().is_some_and(|last| *last > run)),
        _ => None,
    }
}
