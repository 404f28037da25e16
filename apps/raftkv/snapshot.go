package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"checksync/apps/raftnode"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// A snapshot is the whole store at one index, so that the log before it can go. Its data is, for each pair,
// the key's length, the key, the value's length, the value; lengths are varints.

func snapshotPath(dir string) string { return filepath.Join(dir, "snapshot") }

// loadSnapshot answers nil if there is none.
func loadSnapshot(dir string) (*pb.Snapshot, error) {
	content, err := os.ReadFile(snapshotPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	snapshot := &pb.Snapshot{}
	if err := proto.Unmarshal(content, snapshot); err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", snapshotPath(dir), err)
	}
	return snapshot, nil
}

func saveSnapshot(dir string, snapshot *pb.Snapshot) error {
	content, err := proto.Marshal(snapshot)
	if err != nil {
		return err
	}
	file, err := raftnode.WriteDurably(snapshotPath(dir), content)
	if err != nil {
		return err
	}
	return file.Close()
}

func encodeStore(data *store) []byte {
	var content []byte
	field := func(text string) {
		content = binary.AppendUvarint(content, uint64(len(text)))
		content = append(content, text...)
	}
	data.scan(func(p pair) {
		field(p.key)
		field(p.value)
	})
	return content
}

// replaceStore puts what a snapshot holds in the place of everything in the store.
func replaceStore(data *store, content []byte) error {
	for i := range data.buckets {
		b := &data.buckets[i]
		b.mu.Lock()
		clear(b.pairs)
		b.mu.Unlock()
	}
	for len(content) > 0 {
		var key, value string
		var err error
		if key, content, err = takeField(content); err == nil {
			value, content, err = takeField(content)
		}
		if err != nil {
			return err
		}
		data.put(key, value)
	}
	return nil
}

func takeField(content []byte) (string, []byte, error) {
	length, used := binary.Uvarint(content)
	if used <= 0 || length > uint64(len(content)-used) {
		return "", nil, errors.New("the snapshot is cut short")
	}
	end := used + int(length)
	return string(content[used:end]), content[end:], nil
}

// snapshotIfDue replaces the log before the newest applied entry by a snapshot. The node stands still
// meanwhile, for as long as it takes to copy the store and sync it.
func (n *node) snapshotIfDue() error {
	if n.applied-n.snapshotIndex < n.snapshotEntries {
		return nil
	}
	snapshot, err := n.storage.CreateSnapshot(n.applied, n.members, encodeStore(n.data))
	if err != nil {
		return err
	}
	if err := saveSnapshot(n.dir, snapshot); err != nil {
		return err
	}
	n.snapshotIndex = n.applied
	first, err := n.storage.FirstIndex()
	if err != nil {
		return err
	}
	if n.applied > n.entriesKept && n.applied-n.entriesKept >= first {
		if err := n.storage.Compact(n.applied - n.entriesKept); err != nil {
			return err
		}
	}
	return n.rewriteLog()
}

// rewriteLog keeps what is after the snapshot.
func (n *node) rewriteLog() error {
	hard, _, err := n.storage.InitialState()
	if err != nil {
		return err
	}
	last, err := n.storage.LastIndex()
	if err != nil {
		return err
	}
	var entries []*pb.Entry
	if last > n.snapshotIndex {
		if entries, err = n.storage.Entries(n.snapshotIndex+1, last+1, ^uint64(0)); err != nil {
			return err
		}
	}
	return n.log.Rewrite(hard, entries)
}

// restore takes over the leader's snapshot.
func (n *node) restore(snapshot *pb.Snapshot) error {
	if raft.IsEmptySnap(snapshot) {
		return nil
	}
	if err := saveSnapshot(n.dir, snapshot); err != nil {
		return err
	}
	if err := n.storage.ApplySnapshot(snapshot); err != nil {
		return err
	}
	n.applied = snapshot.GetMetadata().GetIndex()
	n.snapshotIndex = n.applied
	if err := n.rewriteLog(); err != nil {
		return err
	}
	return replaceStore(n.data, snapshot.GetData())
}
