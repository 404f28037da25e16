package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"checksync/apps/raftnode"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

const (
	electionTicks  = 10
	heartbeatTicks = 1
	inboundMax     = 4096
)

// machine is what the log drives: the same on all nodes. Both are called by the node's loop alone.
type machine interface {
	// apply executes a committed command.
	apply(command []byte) error
	// lead is told when this node leads and has applied all that was committed before, and when it leads no more.
	lead(leads bool)
}

// node is one member: a single goroutine drives Raft, writes the log and applies what is committed. There are as many
// entries as there are tasks, so the log is never shortened: a node that comes back reads all of it.
type node struct {
	id      uint64
	tick    time.Duration
	machine machine

	raw     *raft.RawNode
	storage *raft.MemoryStorage
	log     *raftnode.Log
	peers   *raftnode.Transport

	inbound   chan *pb.Message
	proposals chan *proposal

	// Of the loop alone.
	leads   bool
	newest  uint64
	waiting map[uint64]*proposal
}

// proposal is a command on its way through the log.
type proposal struct {
	command []byte
	// committed tells whether the command is applied; false if nobody knows.
	committed chan bool
}

type nodeConfig struct {
	id       uint64
	dir      string
	peers    map[uint64]string
	election time.Duration
}

// newNode finds what the directory holds from an earlier run.
func newNode(ctx context.Context, config nodeConfig, machine machine) (*node, error) {
	if err := os.MkdirAll(config.dir, 0o700); err != nil {
		return nil, err
	}
	n := &node{
		id: config.id, tick: config.election / electionTicks, machine: machine,
		storage: raft.NewMemoryStorage(),
		inbound: make(chan *pb.Message, inboundMax), proposals: make(chan *proposal),
		newest:  uint64(time.Now().UnixNano()), // Above all numbers of earlier runs of this node.
		waiting: make(map[uint64]*proposal),
	}
	if err := n.recover(filepath.Join(config.dir, "log"), slices.Sorted(maps.Keys(config.peers))); err != nil {
		return nil, err
	}
	var err error
	n.raw, err = raft.NewRawNode(&raft.Config{
		ID: n.id, ElectionTick: electionTicks, HeartbeatTick: heartbeatTicks, Storage: n.storage, Applied: 1,
		MaxSizePerMsg: 1 << 20, MaxInflightMsgs: 256, CheckQuorum: true, PreVote: true, Logger: raftnode.QuietLogger("raftmapreduce"),
	})
	if err != nil {
		return nil, err
	}
	n.peers = raftnode.NewTransport(ctx, n.id, config.peers)
	return n, nil
}

// recover loads the log. History begins with a snapshot of nothing, which names the members.
func (n *node) recover(path string, voters []uint64) error {
	first := uint64(1)
	members := &pb.ConfState{Voters: voters}
	begin := &pb.Snapshot{Metadata: &pb.SnapshotMetadata{ConfState: members, Index: &first, Term: &first}}
	if err := n.storage.ApplySnapshot(begin); err != nil {
		return err
	}
	log, hard, entries, err := raftnode.OpenLog(path)
	if err != nil {
		return err
	}
	n.log = log
	term, commit := max(hard.GetTerm(), first), max(hard.GetCommit(), first)
	hard.Term, hard.Commit = &term, &commit
	if err := n.storage.SetHardState(hard); err != nil {
		return err
	}
	return n.storage.Append(entries)
}

// propose puts a command into the log, and waits until it is applied here. It reports whether it is known to be.
func (n *node) propose(ctx context.Context, command []byte) bool {
	p := &proposal{command, make(chan bool, 1)}
	select {
	case n.proposals <- p:
	case <-ctx.Done():
		return false
	}
	select {
	case committed := <-p.committed:
		return committed
	case <-ctx.Done():
		return false
	}
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
			n.raw.Tick()
		case fate := <-n.peers.Fates:
			if !fate.Sent {
				n.raw.ReportUnreachable(fate.Peer)
			}
		case message := <-n.inbound:
			n.step(message)
		case p := <-n.proposals:
			n.take(p)
		}
		for n.raw.HasReady() {
			if err := n.handle(n.raw.Ready()); err != nil {
				return err
			}
		}
	}
}

// step hands a peer's message to Raft. One that Raft refuses, of an old term or a stranger, is as good as lost.
func (n *node) step(message *pb.Message) {
	if err := n.raw.Step(message); err != nil && !errors.Is(err, raft.ErrProposalDropped) {
		fmt.Fprintln(os.Stderr, "raftmapreduce: message refused:", err)
	}
}

// An entry is the proposer's id u64, the command's number u64, and the command.
func (n *node) take(p *proposal) {
	n.newest++
	content := binary.LittleEndian.AppendUint64(nil, n.id)
	content = binary.LittleEndian.AppendUint64(content, n.newest)
	if err := n.raw.Propose(append(content, p.command...)); err != nil {
		p.committed <- false
		return
	}
	n.waiting[n.newest] = p
}

// handle does what Raft asks for: log first, then messages. A leader's messages may go while it syncs, for
// it counts itself only when it has; a follower's are promises about what is on its disk.
func (n *node) handle(ready raft.Ready) error {
	if ready.SoftState != nil {
		n.leadsNow(ready.RaftState == raft.StateLeader)
	}
	if n.leads {
		n.peers.Send(ready.Messages)
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
	n.raw.Advance(ready)
	return nil
}

// leadsNow gives up on what was proposed before: it may be committed or not, now or later.
func (n *node) leadsNow(leads bool) {
	if leads == n.leads {
		return
	}
	n.leads = leads
	if leads {
		return // The machine is told once the first entry of this term is applied.
	}
	for _, p := range n.waiting {
		p.committed <- false
	}
	clear(n.waiting)
	n.machine.lead(false)
}

func (n *node) apply(entry *pb.Entry) error {
	content := entry.GetData()
	switch {
	case entry.GetType() != pb.EntryNormal:
		return fmt.Errorf("entry %d is of type %s, but members never change", entry.GetIndex(), entry.GetType())
	case len(content) == 0: // A new leader's first: all that earlier ones committed comes before it.
		if n.leads && entry.GetTerm() == n.raw.BasicStatus().GetTerm() {
			n.machine.lead(true)
		}
		return nil
	case len(content) < 16:
		return io.ErrUnexpectedEOF
	}
	if err := n.machine.apply(content[16:]); err != nil {
		return err
	}
	number := binary.LittleEndian.Uint64(content[8:])
	if p := n.waiting[number]; p != nil && binary.LittleEndian.Uint64(content) == n.id {
		delete(n.waiting, number)
		p.committed <- true
	}
	return nil
}
