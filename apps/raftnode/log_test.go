package raftnode

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
)

func logEntry(index, term uint64) *pb.Entry {
	return &pb.Entry{Index: &index, Term: &term, Data: []byte(fmt.Sprintf("entry %d of term %d", index, term))}
}

func TestLogEndsBeforeARecordThatIsNotWhole(t *testing.T) {
	for name, spoil := range map[string]func(*Log) error{
		"cut short": func(l *Log) error { return l.file.Truncate(l.size - 1) },
		"changed": func(l *Log) error {
			_, err := l.file.WriteAt([]byte("?"), l.size-1)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) { logEndsBefore(t, spoil) })
	}
}

func logEndsBefore(t *testing.T, spoil func(*Log) error) {
	path := filepath.Join(t.TempDir(), "log")
	l, _, _, err := OpenLog(path)
	if err != nil {
		t.Fatal(err)
	}
	term := uint64(1)
	if err := l.Append(&pb.HardState{Term: &term}, []*pb.Entry{logEntry(1, 1), logEntry(2, 1)}, true); err != nil {
		t.Fatal(err)
	}
	whole := l.size
	if err := errors.Join(l.Append(nil, []*pb.Entry{logEntry(3, 1)}, true), spoil(l), l.Close()); err != nil {
		t.Fatal(err)
	}
	l, hard, entries, err := OpenLog(path)
	if err != nil || len(entries) != 2 || hard.GetTerm() != 1 || l.size != whole {
		t.Fatalf("%d entries, %v: %v", len(entries), hard, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestEntryOfANewTermReplacesThoseFromItsIndexOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, _, _, err := OpenLog(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, entries := range [][]*pb.Entry{{logEntry(1, 1), logEntry(2, 1), logEntry(3, 1)}, {logEntry(2, 2)}} {
		if err := l.Append(nil, entries, true); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, _, entries, err := OpenLog(path)
	if err != nil || len(entries) != 2 || entries[1].GetTerm() != 2 {
		t.Fatalf("entries %v: %v", entries, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
