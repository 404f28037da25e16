package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// A write-ahead log is one file of records:
//
//	length u32 | crc32c u32 of what follows | kind u8 | protobuf message of that kind
//
// The file is allocated ahead, so that syncing a record need not change its size; a length of zero ends it.
// A record that is cut short or does not match its checksum is what a crash left, and ends it too: nothing
// after it was ever synced. An entry replaces all earlier ones from its index on.

const (
	kindHardState = 1
	kindEntry     = 2

	recordHeader = 8
	// allocateStep is by how much the file grows at a time.
	allocateStep = 64 << 20
	recordMax    = 256 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type wal struct {
	path      string
	file      *os.File
	size      int64 // Of the records; the file is longer.
	allocated int64
	buffer    []byte
}

// openWAL opens the log at path, made if missing, and answers what it holds.
func openWAL(path string) (*wal, *pb.HardState, []*pb.Entry, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, nil, err
	}
	content, err := io.ReadAll(file)
	if err != nil {
		return nil, nil, nil, errors.Join(err, file.Close())
	}
	hard, entries, size, err := replay(content)
	if err == nil {
		err = file.Truncate(size) // What a crash left behind must not follow the next record.
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, nil, nil, errors.Join(fmt.Errorf("log %s: %w", path, err), file.Close())
	}
	return &wal{path: path, file: file, size: size, allocated: size}, hard, entries, nil
}

// replay reads records until the end; size is where the next one goes.
func replay(content []byte) (hard *pb.HardState, entries []*pb.Entry, size int64, err error) {
	hard = &pb.HardState{}
	for rest := content; ; {
		kind, payload, after := nextRecord(rest)
		switch kind {
		case 0:
			return hard, entries, int64(len(content) - len(rest)), nil
		case kindHardState:
			hard = &pb.HardState{}
			err = proto.Unmarshal(payload, hard)
		case kindEntry:
			entry := &pb.Entry{}
			err = proto.Unmarshal(payload, entry)
			entries = replaceFrom(entries, entry)
		default:
			err = fmt.Errorf("record of unknown kind %d", kind)
		}
		if err != nil {
			return nil, nil, 0, err
		}
		rest = after
	}
}

// nextRecord answers kind 0 at the end.
func nextRecord(content []byte) (kind byte, payload, rest []byte) {
	if len(content) < recordHeader {
		return 0, nil, nil
	}
	length := int(binary.LittleEndian.Uint32(content))
	if length == 0 || length > len(content)-recordHeader {
		return 0, nil, nil
	}
	body := content[recordHeader : recordHeader+length]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(content[4:]) {
		return 0, nil, nil
	}
	return body[0], body[1:], content[recordHeader+length:]
}

func replaceFrom(entries []*pb.Entry, entry *pb.Entry) []*pb.Entry {
	for len(entries) > 0 && entries[len(entries)-1].GetIndex() >= entry.GetIndex() {
		entries = entries[:len(entries)-1]
	}
	return append(entries, entry)
}

// append writes what a Ready asks for in one write, and syncs it if it must.
func (w *wal) append(hard *pb.HardState, entries []*pb.Entry, sync bool) error {
	if err := w.encode(hard, entries); err != nil || len(w.buffer) == 0 {
		return err
	}
	end := w.size + int64(len(w.buffer))
	if end > w.allocated {
		w.allocate(end)
	}
	if _, err := w.file.WriteAt(w.buffer, w.size); err != nil {
		return fmt.Errorf("log %s: %w", w.path, err)
	}
	w.size = end
	if !sync {
		return nil
	}
	if err := syscall.Fdatasync(int(w.file.Fd())); err != nil {
		return fmt.Errorf("log %s: cannot sync: %w", w.path, err)
	}
	return nil
}

func (w *wal) encode(hard *pb.HardState, entries []*pb.Entry) error {
	w.buffer = w.buffer[:0]
	for _, entry := range entries {
		if err := w.record(kindEntry, entry); err != nil {
			return err
		}
	}
	// Last: a commit index must never be found without the entries that it speaks of.
	if !raft.IsEmptyHardState(hard) {
		if err := w.record(kindHardState, hard); err != nil {
			return err
		}
	}
	return nil
}

func (w *wal) record(kind byte, message proto.Message) error {
	start := len(w.buffer)
	w.buffer = append(w.buffer, make([]byte, recordHeader)...)
	w.buffer = append(w.buffer, kind)
	var err error
	if w.buffer, err = (proto.MarshalOptions{}).MarshalAppend(w.buffer, message); err != nil {
		return err
	}
	body := w.buffer[start+recordHeader:]
	if len(body) > recordMax {
		return fmt.Errorf("a record of %d bytes is more than %d", len(body), recordMax)
	}
	binary.LittleEndian.PutUint32(w.buffer[start:], uint32(len(body)))
	binary.LittleEndian.PutUint32(w.buffer[start+4:], crc32.Checksum(body, castagnoli))
	return nil
}

// allocate makes room for more than end. A file system that cannot allocate ahead still grows by writing.
func (w *wal) allocate(end int64) {
	to := end + allocateStep
	if syscall.Fallocate(int(w.file.Fd()), 0, w.allocated, to-w.allocated) == nil {
		w.allocated = to
	}
}

func (w *wal) close() error { return w.file.Close() }

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
