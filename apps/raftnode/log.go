package raftnode

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

// The log is one file of records:
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

// Log is a write-ahead log of Raft.
type Log struct {
	path      string
	file      *os.File
	size      int64 // Of the records; the file is longer.
	allocated int64
	buffer    []byte
}

// OpenLog opens the log at path, made if missing, and answers what it holds.
func OpenLog(path string) (*Log, *pb.HardState, []*pb.Entry, error) {
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
	return &Log{path: path, file: file, size: size, allocated: size}, hard, entries, nil
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

// Append writes what a Ready asks for in one write, and syncs it if it must.
func (l *Log) Append(hard *pb.HardState, entries []*pb.Entry, sync bool) error {
	if err := l.encode(hard, entries); err != nil || len(l.buffer) == 0 {
		return err
	}
	end := l.size + int64(len(l.buffer))
	if end > l.allocated {
		l.allocate(end)
	}
	if _, err := l.file.WriteAt(l.buffer, l.size); err != nil {
		return fmt.Errorf("log %s: %w", l.path, err)
	}
	l.size = end
	if !sync {
		return nil
	}
	if err := syscall.Fdatasync(int(l.file.Fd())); err != nil {
		return fmt.Errorf("log %s: cannot sync: %w", l.path, err)
	}
	return nil
}

func (l *Log) encode(hard *pb.HardState, entries []*pb.Entry) error {
	l.buffer = l.buffer[:0]
	for _, entry := range entries {
		if err := l.record(kindEntry, entry); err != nil {
			return err
		}
	}
	// Last: a commit index must never be found without the entries that it speaks of.
	if !raft.IsEmptyHardState(hard) {
		if err := l.record(kindHardState, hard); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) record(kind byte, message proto.Message) error {
	start := len(l.buffer)
	l.buffer = append(l.buffer, make([]byte, recordHeader)...)
	l.buffer = append(l.buffer, kind)
	var err error
	if l.buffer, err = (proto.MarshalOptions{}).MarshalAppend(l.buffer, message); err != nil {
		return err
	}
	body := l.buffer[start+recordHeader:]
	if len(body) > recordMax {
		return fmt.Errorf("a record of %d bytes is more than %d", len(body), recordMax)
	}
	binary.LittleEndian.PutUint32(l.buffer[start:], uint32(len(body)))
	binary.LittleEndian.PutUint32(l.buffer[start+4:], crc32.Checksum(body, castagnoli))
	return nil
}

// allocate makes room for more than end. A file system that cannot allocate ahead still grows by writing.
func (l *Log) allocate(end int64) {
	to := end + allocateStep
	if syscall.Fallocate(int(l.file.Fd()), 0, l.allocated, to-l.allocated) == nil {
		l.allocated = to
	}
}

// Rewrite replaces the whole log, at once and for good: after a snapshot only what is newer is needed.
func (l *Log) Rewrite(hard *pb.HardState, entries []*pb.Entry) error {
	if err := l.encode(hard, entries); err != nil {
		return err
	}
	file, err := WriteDurably(l.path, l.buffer)
	if err != nil {
		return err
	}
	l.file.Close() // Of a file that is no longer there; nothing of it is needed.
	l.file, l.size, l.allocated = file, int64(len(l.buffer)), int64(len(l.buffer))
	return nil
}

// Close ends the use of the log.
func (l *Log) Close() error { return l.file.Close() }

// WriteDurably puts content at path so that after a crash either all of it or what was there before is found.
func WriteDurably(path string, content []byte) (*os.File, error) {
	file, err := os.OpenFile(path+".incomplete", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = file.Write(content)
	if err == nil {
		err = file.Sync()
	}
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
