//! A state as what is not as it was in the epoch before: of a server, little is. A thread that ran has other
//! registers, a connection other numbers; the rest is said again only by a full epoch.
//!
//! Who makes a change applies it as its receiver will, and compares: what the short forms ([`Moved`], [`Traffic`])
//! don't say of a thread or a connection has it sent whole.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::CheckpointId;
use crate::descriptor::{Descriptor, FileKind, OpenFile, Pipe, Stray, TcpState, TcpWindow};
use crate::frame::{self, Frame, FrameError, FrameKind};
use crate::process::{MemoryMap, Process, Registers, SignalAction, Thread, Timeout};
use crate::state::{Clocks, State};

/// What vector registers are compared by.
const LINE_BYTES: usize = 64;
/// A state that fits into no memory is an attack or a fault, not a state.
const STATE_BYTES_MAX: usize = 512 << 20;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StateChange {
    /// Whose state it goes on from.
    since: CheckpointId,
    clocks: Clocks,
    processes: Vec<ProcessChange>,
    spaces: ListChange<MemoryMap>,
    files: ListChange<OpenFile>,
    /// Of files that are connections: by index.
    traffic: Vec<(u32, Traffic)>,
    pipes: ListChange<Pipe>,
    strays: ListChange<Stray>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ProcessChange {
    /// Without the lists that follow.
    rest: Option<Box<Process>>,
    threads: ListChange<Thread>,
    /// Of threads that only ran: by index.
    moved: Vec<(u32, Moved)>,
    descriptors: ListChange<Descriptor>,
    actions: ListChange<SignalAction>,
}

/// What a thread has that ran: vector registers as the lines of them that differ, by number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Moved(Registers, Option<Timeout>, Vec<(u32, ByteBuf)>);

/// What a connection has that something was said on: the first fields of [`TcpState`], and the others that don't stay
/// what they were agreed on. A tuple, since there may be thousands, and names would be most of each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Traffic(
    u8,
    (u32, u32),
    (ByteBuf, u32),
    (ByteBuf, bool),
    Option<u32>,
    (u32, u32, u32, u32, u32),
    (u32, i32, i32),
);

/// A list of as many entries as there are now, and those that are others or new, by index.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ListChange<T> {
    len: u32,
    changed: Vec<(u32, T)>,
}

impl<T: Clone + PartialEq> ListChange<T> {
    fn between(before: &[T], after: &[T]) -> Self {
        let differs = |(index, entry): &(usize, &T)| before.get(*index) != Some(*entry);
        let changed = after.iter().enumerate().filter(differs);
        Self {
            len: after.len() as u32,
            changed: changed.map(|(at, entry)| (at as u32, entry.clone())).collect(),
        }
    }

    /// `None` if it names what is not there.
    fn apply(self, list: &mut Vec<T>) -> Option<()> {
        list.truncate(self.len as usize);
        for (index, entry) in self.changed {
            match index as usize {
                index if index < list.len() => list[index] = entry,
                index if index == list.len() => list.push(entry),
                _ => return None,
            }
        }
        (list.len() == self.len as usize).then_some(())
    }
}

impl StateChange {
    /// What makes `after` of `before`, which is the state at `since`, and is used up. `None`: only the whole of it does.
    pub fn between(since: CheckpointId, before: &mut State, after: &State) -> Option<Self> {
        if before.processes.len() != after.processes.len() {
            return None;
        }
        let traffic = in_short(
            &mut before.files,
            &after.files,
            |_, after| Some(Traffic::of(tcp_of(after)?)),
            Traffic::apply,
        );
        let pairs = before.processes.iter_mut().zip(&after.processes);
        Some(Self {
            since,
            clocks: after.clocks,
            processes: pairs.map(|(before, after)| ProcessChange::between(before, after)).collect(),
            spaces: ListChange::between(&before.spaces, &after.spaces),
            files: ListChange::between(&before.files, &after.files),
            traffic,
            pipes: ListChange::between(&before.pipes, &after.pipes),
            strays: ListChange::between(&before.strays, &after.strays),
        })
    }

    /// The state after it; `None` if it does not fit to what was `before`.
    pub fn apply(self, before: &State) -> Option<State> {
        let mut state = State { clocks: self.clocks, ..before.clone() };
        if self.processes.len() != state.processes.len() {
            return None;
        }
        // In the order in which it was made: the short forms are of what was there before.
        for (index, traffic) in self.traffic {
            traffic.apply(state.files.get_mut(index as usize)?)?;
        }
        self.files.apply(&mut state.files)?;
        for (change, process) in self.processes.into_iter().zip(&mut state.processes) {
            change.apply(process)?;
        }
        self.spaces.apply(&mut state.spaces)?;
        self.pipes.apply(&mut state.pipes)?;
        self.strays.apply(&mut state.strays)?;
        Some(state)
    }
}

impl ProcessChange {
    fn between(before: &mut Process, after: &Process) -> Self {
        let moved = in_short(&mut before.threads, &after.threads, Moved::between, Moved::apply);
        Self {
            rest: (!is_same_but_for_lists(before, after)).then(|| {
                let (threads, descriptors, actions) = (Vec::new(), Vec::new(), Vec::new());
                Box::new(Process { threads, descriptors, actions, ..after.clone() })
            }),
            threads: ListChange::between(&before.threads, &after.threads),
            moved,
            descriptors: ListChange::between(&before.descriptors, &after.descriptors),
            actions: ListChange::between(&before.actions, &after.actions),
        }
    }

    fn apply(self, process: &mut Process) -> Option<()> {
        for (index, moved) in self.moved {
            moved.apply(process.threads.get_mut(index as usize)?)?;
        }
        self.threads.apply(&mut process.threads)?;
        self.descriptors.apply(&mut process.descriptors)?;
        self.actions.apply(&mut process.actions)?;
        if let Some(rest) = self.rest {
            let Process { threads, descriptors, actions, .. } = std::mem::replace(process, *rest);
            (process.threads, process.descriptors, process.actions) = (threads, descriptors, actions);
        }
        Some(())
    }
}

fn is_same_but_for_lists(before: &Process, after: &Process) -> bool {
    let Process {
        pid,
        parent,
        group,
        session,
        space,
        threads: _,
        descriptors: _,
        actions: _,
        pending,
        limits,
        filesystem,
        interval_timers,
        posix_timers,
        attributes,
    } = before;
    (*pid, *parent, *group, *session, *space)
        == (after.pid, after.parent, after.group, after.session, after.space)
        && (pending, limits, filesystem) == (&after.pending, &after.limits, &after.filesystem)
        && (interval_timers, posix_timers, attributes)
            == (&after.interval_timers, &after.posix_timers, &after.attributes)
}

/// What in short makes entries of `after` of those of `before`, by index; `before` becomes what these say.
fn in_short<T: PartialEq, S: Clone>(
    before: &mut [T],
    after: &[T],
    of: impl Fn(&T, &T) -> Option<S>,
    apply: impl Fn(S, &mut T) -> Option<()>,
) -> Vec<(u32, S)> {
    let pairs = before.iter_mut().zip(after).enumerate().filter(|(_, (before, after))| *before != *after);
    let said = pairs.filter_map(|(index, (before, after))| {
        let short = of(before, after)?;
        // One that is sent whole may be anything meanwhile.
        apply(short.clone(), before)?;
        (*before == *after).then_some((index as u32, short))
    });
    said.collect()
}

fn tcp_of(file: &OpenFile) -> Option<&TcpState> {
    let FileKind::Connection(socket) = &file.kind else { return None };
    socket.tcp.as_deref()
}

impl Moved {
    fn between(before: &Thread, after: &Thread) -> Option<Self> {
        if before.xstate.len() != after.xstate.len() {
            return None;
        }
        let lines = before.xstate.chunks(LINE_BYTES).zip(after.xstate.chunks(LINE_BYTES)).enumerate();
        let differing = lines.filter(|(_, (before, after))| before != after);
        let lines = differing.map(|(number, (_, line))| (number as u32, ByteBuf::from(line))).collect();
        Some(Self(after.registers, after.timeout, lines))
    }

    fn apply(self, thread: &mut Thread) -> Option<()> {
        let Self(registers, timeout, lines) = self;
        (thread.registers, thread.timeout) = (registers, timeout);
        for (number, line) in lines {
            let start = (number as usize).checked_mul(LINE_BYTES)?;
            let end = start.checked_add(line.len())?;
            thread.xstate.get_mut(start..end)?.copy_from_slice(&line);
        }
        Some(())
    }
}

impl Traffic {
    fn of(tcp: &TcpState) -> Self {
        let TcpWindow { update_sequence, peer, peer_max, own, own_from } = tcp.window;
        Self(
            tcp.state,
            (tcp.write_sequence, tcp.read_sequence),
            (tcp.unacknowledged.clone(), tcp.unsent),
            (tcp.unread.clone(), tcp.read_shut),
            tcp.timestamp,
            (update_sequence, peer, peer_max, own, own_from),
            (tcp.round_trip_us, tcp.send_buffer, tcp.receive_buffer),
        )
    }

    fn apply(self, file: &mut OpenFile) -> Option<()> {
        let FileKind::Connection(socket) = &mut file.kind else { return None };
        let before = socket.tcp.as_deref_mut()?;
        let Self(state, sequences, outwards, inwards, timestamp, window, path) = self;
        let (update_sequence, peer, peer_max, own, own_from) = window;
        *before = TcpState {
            state,
            write_sequence: sequences.0,
            read_sequence: sequences.1,
            unacknowledged: outwards.0,
            unsent: outwards.1,
            unread: inwards.0,
            read_shut: inwards.1,
            timestamp,
            window: TcpWindow { update_sequence, peer, peer_max, own, own_from },
            round_trip_us: path.0,
            send_buffer: path.1,
            receive_buffer: path.2,
            segment_max: before.segment_max,
            selective_acknowledgements: before.selective_acknowledgements,
            window_scales: before.window_scales,
            buffers_locked: before.buffers_locked,
        };
        Some(())
    }
}

/// A state as it comes in, whole or as a change, slice by slice.
#[derive(Debug, Default)]
pub struct Slices {
    bytes: Vec<u8>,
    is_change: Option<bool>,
}

impl Slices {
    pub fn take(&mut self, frame: &Frame) -> Result<(), FrameError> {
        let is_change = frame.kind == FrameKind::StateChange;
        if self.is_change.replace(is_change).is_some_and(|before| before != is_change) {
            return Err(FrameError::Place(frame.kind));
        }
        if self.bytes.len() + frame.payload.len() > STATE_BYTES_MAX {
            return Err(FrameError::Length((self.bytes.len() + frame.payload.len()) as u64));
        }
        self.bytes.extend_from_slice(&frame.payload);
        Ok(())
    }

    /// The state, which goes on from `before` if it came as a change.
    pub fn join(&self, before: Option<(CheckpointId, &State)>) -> Result<State, FrameError> {
        if self.is_change != Some(true) {
            return frame::decode(&self.bytes, "state");
        }
        let wrong = |why: String| FrameError::Decode { what: "change of a state", why };
        let change: StateChange = frame::decode(&self.bytes, "change of a state")?;
        let since = change.since;
        let (id, state) = before.ok_or_else(|| wrong(format!("that of {since} is not here")))?;
        if id != since {
            return Err(wrong(format!("it goes on from {since}, and that of {id} is here")));
        }
        change.apply(state).ok_or_else(|| wrong(format!("it does not fit to that of {since}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::{InternetSocket, SocketOption};
    use crate::frame::FrameWriter;
    use crate::process::{
        AlternateStack, Credentials, Filesystem, IntervalTimer, ProcessAttributes, RobustList,
        ThreadAttributes,
    };

    const SINCE: CheckpointId = CheckpointId { term: crate::Term(1), epoch: crate::Epoch(7) };
    const XSTATE_BYTES: usize = 2 * LINE_BYTES + 8;

    fn thread(tid: i32) -> Thread {
        Thread {
            tid,
            registers: Registers([tid as u64; 27]),
            timeout: None,
            rest: None,
            xstate: ByteBuf::from(vec![0; XSTATE_BYTES]),
            signal_mask: 0,
            alternate_stack: AlternateStack::default(),
            robust_list: RobustList::default(),
            clear_child_tid: 0,
            rseq: None,
            pending: Vec::new(),
            credentials: Credentials::default(),
            attributes: ThreadAttributes::default(),
        }
    }

    fn tcp() -> TcpState {
        TcpState {
            state: 1,
            write_sequence: 1,
            read_sequence: 2,
            unacknowledged: ByteBuf::new(),
            unsent: 0,
            unread: ByteBuf::new(),
            read_shut: false,
            segment_max: 1460,
            selective_acknowledgements: true,
            window_scales: Some((7, 7)),
            timestamp: Some(3),
            window: TcpWindow { update_sequence: 1, peer: 2, peer_max: 3, own: 4, own_from: 5 },
            round_trip_us: 6,
            send_buffer: 7,
            receive_buffer: 8,
            buffers_locked: 0,
        }
    }

    fn file(kind: FileKind) -> OpenFile {
        OpenFile { flags: 2, position: 0, kind, locks: Vec::new(), owner: None }
    }

    fn connection(port: u8) -> OpenFile {
        file(FileKind::Connection(InternetSocket {
            family: 2,
            socket_type: 1,
            protocol: 6,
            local: ByteBuf::from(vec![2, 0, 0, 80]),
            remote: ByteBuf::from(vec![2, 0, 0, port]),
            backlog: 0,
            options: vec![SocketOption { level: 6, name: 1, value: ByteBuf::from(vec![1]) }],
            tcp: Some(Box::new(tcp())),
            queue: Vec::new(),
        }))
    }

    fn process() -> Process {
        let descriptor = |number| Descriptor { number, close_on_exec: true, file: number as u32 };
        Process {
            pid: 1,
            parent: 0,
            group: 1,
            session: 1,
            space: 0,
            threads: vec![thread(1), thread(2), thread(3)],
            descriptors: (0..3).map(descriptor).collect(),
            actions: vec![SignalAction::default(); 64],
            pending: Vec::new(),
            limits: Vec::new(),
            filesystem: Filesystem::default(),
            interval_timers: [IntervalTimer::default(); 3],
            posix_timers: Vec::new(),
            attributes: ProcessAttributes::default(),
        }
    }

    fn state() -> State {
        State {
            clocks: Clocks::default(),
            processes: vec![process()],
            spaces: vec![MemoryMap::default()],
            files: vec![file(FileKind::Event { count: 0, semaphore: false }), connection(1), connection(2)],
            pipes: Vec::new(),
            strays: Vec::new(),
        }
    }

    fn socket(state: &mut State, index: usize) -> &mut InternetSocket {
        match &mut state.files[index].kind {
            FileKind::Connection(socket) => socket,
            other => panic!("{other:?} is no connection"),
        }
    }

    fn tcp_in(state: &mut State, index: usize) -> &mut TcpState {
        socket(state, index).tcp.as_deref_mut().expect("it goes on")
    }

    type Event = fn(&mut State);

    /// What may become of a state.
    const EVENTS: &[(&str, Event)] = &[
        ("nothing", |_| ()),
        ("time passes", |state| state.clocks.realtime_ns += 1),
        ("a thread runs", |state| state.processes[0].threads[1].registers.0[3] += 1),
        ("a thread computes", |state| state.processes[0].threads[1].xstate[LINE_BYTES..].fill(9)),
        ("a thread waits for a time", |state| {
            state.processes[0].threads[0].timeout = Some(Timeout { argument: 1, remaining_ns: 5 });
        }),
        ("a thread has larger registers", |state| state.processes[0].threads[2].xstate.resize(600, 1)),
        ("a thread blocks signals", |state| state.processes[0].threads[2].signal_mask ^= 1),
        ("a thread is born", |state| state.processes[0].threads.push(thread(9))),
        ("a thread in the middle ends", |state| drop(state.processes[0].threads.remove(1))),
        ("a signal is handled otherwise", |state| state.processes[0].actions[4].handler += 1),
        ("it is another one's child", |state| state.processes[0].parent += 1),
        ("memory grows", |state| state.spaces[0].brk += 4096),
        ("something is said", |state| {
            let tcp = tcp_in(state, 1);
            tcp.write_sequence += 5;
            tcp.unacknowledged = ByteBuf::from(b"hello".as_slice());
        }),
        ("all that may change of a connection does", |state| {
            *tcp_in(state, 2) = TcpState {
                state: 8,
                unsent: 1,
                unread: ByteBuf::from(b"?".as_slice()),
                read_shut: true,
                timestamp: None,
                window: TcpWindow { update_sequence: 9, peer: 9, peer_max: 9, own: 9, own_from: 9 },
                round_trip_us: 9,
                send_buffer: 9,
                receive_buffer: 9,
                ..tcp()
            };
        }),
        ("what was agreed on is another thing", |state| tcp_in(state, 1).segment_max += 1),
        ("an option is set", |state| socket(state, 1).options[0].value[0] ^= 1),
        ("a connection is reset", |state| socket(state, 2).tcp = None),
        ("a connection is made", |state| state.files.push(connection(7))),
        ("a file is closed", |state| drop(state.files.remove(0))),
        ("an event is counted", |state| {
            state.files[0].kind = FileKind::Event { count: 1, semaphore: false };
        }),
        ("descriptors are closed", |state| state.processes[0].descriptors.clear()),
    ];

    fn sent(before: &State, after: &State) -> (usize, State) {
        let change = StateChange::between(SINCE, &mut before.clone(), after).expect("a change");
        let frames = FrameWriter::default().state_change(&change);
        let mut slices = Slices::default();
        let bytes = frames.iter().map(|frame| frame.len()).sum();
        frames
            .into_iter()
            .for_each(|frame| slices.take(&Frame::parse(frame).expect("ours")).expect("its place"));
        (bytes, slices.join(Some((SINCE, before))).expect("it fits"))
    }

    #[test]
    fn whatever_happens_the_state_after_a_change_is_the_state() {
        for (first, one) in EVENTS {
            for (second, other) in EVENTS {
                let mut before = state();
                // It may meet what the first has removed.
                one(&mut before);
                let mut after = state();
                other(&mut after);
                assert_eq!(sent(&before, &after).1, after, "{first}, and instead of it {second}");
            }
        }
    }

    #[test]
    fn what_stays_as_it_is_is_not_said() {
        let (before, mut after) = (state(), state());
        after.processes[0].threads[1].registers.0[3] += 1;
        after.processes[0].threads[1].xstate[0] = 1;
        tcp_in(&mut after, 1).read_sequence += 1;
        let all: usize = FrameWriter::default().state(&after).iter().map(|frame| frame.len()).sum();
        let (bytes, _) = sent(&before, &after);
        assert!(bytes < all / 5, "{bytes} bytes of {all}");
    }

    #[test]
    fn a_change_that_does_not_fit_is_refused() {
        let (before, mut after) = (state(), state());
        tcp_in(&mut after, 2).read_sequence += 1;
        after.processes[0].threads[2].registers.0[0] += 1;
        let change = StateChange::between(SINCE, &mut before.clone(), &after).expect("a change");
        let fits = |change: &StateChange, state: &State| change.clone().apply(state).is_some();
        assert!(fits(&change, &before));
        for spoil in [
            (|state| state.files.truncate(2)) as Event,
            |state| state.files.swap(0, 2),
            |state| state.processes[0].threads.truncate(2),
            |state| state.processes.clear(),
        ] {
            let mut other = before.clone();
            spoil(&mut other);
            assert!(!fits(&change, &other), "it fits to {other:?}");
        }
        let beyond = |len, changed| ListChange { len, changed };
        let mut list = vec![1, 2];
        assert!(beyond(9, vec![(8, 1)]).apply(&mut list).is_none(), "entries that are nowhere");
        assert!(beyond(9, Vec::new()).apply(&mut list).is_none(), "more than there are");
        assert!(
            Moved(Registers([0; 27]), None, vec![(u32::MAX, ByteBuf::from([1]))])
                .apply(&mut thread(1))
                .is_none()
        );
        let (mut whole, mut half) = (Slices::default(), FrameWriter::default());
        let frame = |bytes| Frame::parse(bytes).expect("ours");
        whole.take(&frame(half.state(&before).remove(0))).expect("its place");
        whole.take(&frame(half.state_change(&change).remove(0))).expect_err("both in one epoch");
    }
}
