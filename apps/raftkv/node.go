package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"checksync/apps/raftnode"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

const (
	electionTicks  = 10
	heartbeatTicks = 1
	// readRetryTicks is after how many ticks without an answer the leader is asked again for a read index.
	readRetryTicks = 2
	// answerTicks is how long a request waits before its outcome is called unknown.
	answerTicks = 50
	// takenAtOnce bounds how much of what has come in is taken in before the log is written.
	takenAtOnce = 4096
)

var errUnknown = errors.New("the outcome of the request is not known")

// node is one member: a single goroutine drives Raft, writes the log and applies what is committed. What
// comes in while it syncs the log goes together into the next entry: group commit.
type node struct {
	id              uint64
	dir             string
	localGets       bool
	tick            time.Duration
	snapshotEntries uint64
	entriesKept     uint64
	data            *store

	raw     *raft.RawNode
	storage *raft.MemoryStorage
	members *pb.ConfState
	log     *raftnode.Log
	peers   *raftnode.Transport

	inbound chan *pb.Message
	writes  chan *command
	reads   chan *read

	// Of the loop alone.
	leader        uint64
	leads         bool
	applied       uint64
	snapshotIndex uint64
	ticks         int
	newest        uint64              // The last command's number.
	arrived       []*command          // Not yet proposed.
	proposed      map[uint64]*command // By number.
	asking        *readRound          // One at a time: what comes meanwhile shares the next one.
	nextReads     []*read

	leaderShown, appliedShown atomic.Uint64 // For STATS.
}

// command is a pipeline with at least one write in it: it goes through the log as a whole, and is answered
// as it is applied, so that its requests take effect in their order.
type command struct {
	requests []string
	number   uint64
	since    int
	answered chan []byte // nil for an unknown outcome.
}

type read struct {
	since    int
	released chan bool
}

// readRound asks the leader, which asks a majority whether it still leads, how far the log was committed.
type readRound struct {
	context uint64
	reads   []*read
	since   int
	known   bool
	index   uint64
}

type nodeConfig struct {
	id              uint64
	dir             string
	peers           map[uint64]string
	localGets       bool
	election        time.Duration
	snapshotEntries uint64
	// entriesKept is how many entries before a snapshot stay in memory, so that a follower that is a little
	// behind needs no snapshot.
	entriesKept uint64
}

// newNode finds what the directory holds from an earlier run; data holds what every node starts with.
func newNode(ctx context.Context, config nodeConfig, data *store) (*node, error) {
	if err := os.MkdirAll(config.dir, 0o700); err != nil {
		return nil, err
	}
	n := &node{
		id: config.id, dir: config.dir, localGets: config.localGets, data: data,
		tick: config.election / electionTicks, snapshotEntries: config.snapshotEntries,
		entriesKept: config.entriesKept,
		storage:     raft.NewMemoryStorage(),
		members:     &pb.ConfState{Voters: slices.Sorted(maps.Keys(config.peers))},
		inbound:     make(chan *pb.Message, takenAtOnce), writes: make(chan *command, takenAtOnce),
		reads: make(chan *read, takenAtOnce), proposed: make(map[uint64]*command),
		newest: uint64(time.Now().UnixNano()), // Above all numbers of earlier runs of this node.
	}
	if err := n.recover(); err != nil {
		return nil, err
	}
	var err error
	n.raw, err = raft.NewRawNode(&raft.Config{
		ID: n.id, ElectionTick: electionTicks, HeartbeatTick: heartbeatTicks, Storage: n.storage, Applied: n.applied,
		MaxSizePerMsg: 1 << 20, MaxInflightMsgs: 256, CheckQuorum: true, PreVote: true,
		ReadOnlyOption: raft.ReadOnlySafe, Logger: raftnode.QuietLogger("raftkv"),
	})
	if err != nil {
		return nil, err
	}
	n.peers = raftnode.NewTransport(ctx, n.id, config.peers)
	return n, nil
}

// recover loads snapshot and log. With no snapshot, history begins with one of what every node starts with.
func (n *node) recover() error {
	snapshot, err := loadSnapshot(n.dir)
	if err != nil {
		return err
	}
	if snapshot == nil {
		first := uint64(1)
		snapshot = &pb.Snapshot{Metadata: &pb.SnapshotMetadata{ConfState: n.members, Index: &first, Term: &first}}
	} else if err := replaceStore(n.data, snapshot.GetData()); err != nil {
		return err
	}
	if err := n.storage.ApplySnapshot(snapshot); err != nil {
		return err
	}
	index, term := snapshot.GetMetadata().GetIndex(), snapshot.GetMetadata().GetTerm()
	n.applied, n.snapshotIndex = index, index
	log, hard, entries, err := raftnode.OpenLog(filepath.Join(n.dir, "log"))
	if err != nil {
		return err
	}
	n.log = log
	newTerm, newCommit := max(hard.GetTerm(), term), max(hard.GetCommit(), index)
	hard.Term, hard.Commit = &newTerm, &newCommit
	if err := n.storage.SetHardState(hard); err != nil {
		return err
	}
	return n.storage.Append(after(entries, index, term))
}

// after drops the entries that the snapshot covers; all of them, if they disagree with it.
func after(entries []*pb.Entry, index, term uint64) []*pb.Entry {
	at := slices.IndexFunc(entries, func(e *pb.Entry) bool { return e.GetIndex() == index })
	if at >= 0 && entries[at].GetTerm() != term {
		return nil
	}
	return slices.DeleteFunc(entries, func(e *pb.Entry) bool { return e.GetIndex() <= index })
}

// answer answers a pipeline, or fails with errUnknown.
func (n *node) answer(requests []string) ([]byte, error) {
	if slices.ContainsFunc(requests, isWrite) {
		c := &command{requests: requests, answered: make(chan []byte, 1)}
		n.writes <- c
		if answers := <-c.answered; answers != nil {
			return answers, nil
		}
		return nil, errUnknown
	}
	isLocal := n.localGets || !slices.ContainsFunc(requests, func(request string) bool { return !isStats(request) })
	if !isLocal && !n.readBarrier() {
		return nil, errUnknown
	}
	return n.answerNow(requests), nil
}

// readBarrier waits until all that was committed anywhere before the call is applied here.
func (n *node) readBarrier() bool {
	r := &read{released: make(chan bool, 1)}
	n.reads <- r
	return <-r.released
}

func (n *node) answerNow(requests []string) []byte {
	var answers bytes.Buffer
	writer := bufio.NewWriter(&answers)
	for _, request := range requests {
		answer(writer, n, request)
	}
	writer.Flush() // Into memory: cannot fail.
	return answers.Bytes()
}

// run drives the node until the context ends. An error is one of the log: what is not on disk must not be
// answered, so the node has to die.
func (n *node) run(ctx context.Context) error {
	ticks := time.NewTicker(n.tick)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return n.log.Close()
		case <-ticks.C:
			n.ticked()
		case report := <-n.peers.Fates:
			n.told(report)
		case message := <-n.inbound:
			n.step(message)
		case c := <-n.writes:
			n.take(c)
		case r := <-n.reads:
			n.takeRead(r)
		}
		n.takeMore()
		n.propose()
		n.askToRead()
		for n.raw.HasReady() {
			if err := n.handle(n.raw.Ready()); err != nil {
				return err
			}
		}
		if err := n.snapshotIfDue(); err != nil {
			return err
		}
	}
}

// takeMore takes what else has come in, without waiting.
func (n *node) takeMore() {
	for range takenAtOnce {
		select {
		case message := <-n.inbound:
			n.step(message)
		case c := <-n.writes:
			n.take(c)
		case r := <-n.reads:
			n.takeRead(r)
		default:
			return
		}
	}
}

func (n *node) take(c *command) {
	c.since = n.ticks
	n.arrived = append(n.arrived, c)
}

func (n *node) takeRead(r *read) {
	r.since = n.ticks
	n.nextReads = append(n.nextReads, r)
}

// step hands a peer's message to Raft. One that Raft refuses, of an old term or a stranger, is as good as lost.
func (n *node) step(message *pb.Message) {
	if err := n.raw.Step(message); err != nil && !errors.Is(err, raft.ErrProposalDropped) {
		fmt.Fprintln(os.Stderr, "raftkv: message refused:", err)
	}
}

func (n *node) told(report raftnode.Fate) {
	switch {
	case report.Snapshot && report.Sent:
		n.raw.ReportSnapshot(report.Peer, raft.SnapshotFinish)
	case report.Snapshot:
		n.raw.ReportSnapshot(report.Peer, raft.SnapshotFailure)
	default:
		n.raw.ReportUnreachable(report.Peer)
	}
}

// ticked lets Raft's time go on, and gives up on what has waited for too long.
func (n *node) ticked() {
	n.ticks++
	n.raw.Tick()
	tooOld := func(since int) bool { return n.ticks-since > answerTicks }
	for number, c := range n.proposed {
		if tooOld(c.since) {
			c.answered <- nil
			delete(n.proposed, number)
		}
	}
	n.arrived = slices.DeleteFunc(n.arrived, func(c *command) bool {
		if tooOld(c.since) {
			c.answered <- nil
		}
		return tooOld(c.since)
	})
	expired := func(r *read) bool {
		if tooOld(r.since) {
			r.released <- false
		}
		return tooOld(r.since)
	}
	n.nextReads = slices.DeleteFunc(n.nextReads, expired)
	if n.asking != nil {
		n.asking.reads = slices.DeleteFunc(n.asking.reads, expired)
		if n.ticks-n.asking.since >= readRetryTicks && !n.asking.known {
			n.askAgain()
		}
	}
}

// propose makes one entry of all commands that have arrived. With no leader they wait.
func (n *node) propose() {
	if len(n.arrived) == 0 || n.leader == raft.None {
		return
	}
	for _, c := range n.arrived {
		n.newest++
		c.number = n.newest
	}
	if err := n.raw.Propose(encodeCommands(n.id, n.arrived)); err != nil {
		return // Dropped: nothing of it will ever be committed. The next round tries again.
	}
	for _, c := range n.arrived {
		n.proposed[c.number] = c
	}
	n.arrived = nil
}

// askToRead begins a round for all reads that wait, if none is under way.
func (n *node) askToRead() {
	if n.asking != nil || len(n.nextReads) == 0 || n.leader == raft.None {
		return
	}
	n.asking = &readRound{reads: n.nextReads}
	n.nextReads = nil
	n.askAgain()
}

func (n *node) askAgain() {
	n.newest++
	n.asking.context, n.asking.since = n.newest, n.ticks
	// The context is the node's and the round's: contexts of all nodes meet at the leader.
	context := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, n.id), n.newest)
	n.raw.ReadIndex(context)
}

func (n *node) readIndexKnown(state raft.ReadState) {
	if n.asking != nil && binary.BigEndian.Uint64(state.RequestCtx[8:]) == n.asking.context {
		n.asking.known, n.asking.index = true, state.Index
	}
}

// releaseReads lets go of the reads whose index is applied, and begins the next round.
func (n *node) releaseReads() {
	if n.asking == nil || !n.asking.known || n.applied < n.asking.index {
		return
	}
	for _, r := range n.asking.reads {
		r.released <- true
	}
	n.asking = nil
	n.askToRead()
}

// handle does what Raft asks for: log first, then messages. A leader's messages may go while it syncs, for
// it counts itself only when it has; a follower's are promises about what is on its disk.
func (n *node) handle(ready raft.Ready) error {
	if ready.SoftState != nil {
		n.leads = ready.RaftState == raft.StateLeader
	}
	if n.leads {
		n.peers.Send(ready.Messages)
	}
	if err := n.restore(ready.Snapshot); err != nil {
		return err
	}
	if err := n.log.Append(ready.HardState, ready.Entries, ready.MustSync); err != nil {
		return err
	}
	if !raft.IsEmptyHardState(ready.HardState) {
		if err := n.storage.SetHardState(ready.HardState); err != nil {
			return err
		}
	}
	if err := n.storage.Append(ready.Entries); err != nil {
		return err
	}
	if !n.leads {
		n.peers.Send(ready.Messages)
	}
	for _, entry := range ready.CommittedEntries {
		if err := n.apply(entry); err != nil {
			return err
		}
	}
	for _, state := range ready.ReadStates {
		n.readIndexKnown(state)
	}
	n.raw.Advance(ready)
	if ready.SoftState != nil && ready.Lead != n.leader {
		n.leaderIs(ready.Lead)
	}
	n.appliedShown.Store(n.applied)
	n.releaseReads()
	return nil
}

// leaderIs gives up on what was proposed to the leader before: it may be committed or not, now or later.
func (n *node) leaderIs(leader uint64) {
	n.leader = leader
	n.leaderShown.Store(leader)
	for _, c := range n.proposed {
		c.answered <- nil
	}
	clear(n.proposed)
	if leader == raft.None {
		return
	}
	if n.asking != nil && !n.asking.known {
		n.askAgain()
	}
	n.propose()
	n.askToRead()
}

// apply executes the commands of a committed entry, and answers those that came through this node.
func (n *node) apply(entry *pb.Entry) error {
	n.applied = entry.GetIndex()
	if entry.GetType() != pb.EntryNormal {
		return fmt.Errorf("entry %d is of type %s, but members never change", n.applied, entry.GetType())
	}
	if len(entry.GetData()) == 0 {
		return nil // A new leader's first.
	}
	return decodeCommands(entry.GetData(), func(proposer, number uint64, requests []string) {
		c := n.proposed[number]
		if c != nil && proposer == n.id {
			delete(n.proposed, number)
			c.answered <- n.answerNow(requests)
			return
		}
		unheard := bufio.NewWriter(io.Discard)
		for _, request := range requests {
			if isWrite(request) {
				answer(unheard, n, request)
			}
		}
	})
}
