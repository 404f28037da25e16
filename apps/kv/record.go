package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// A record is what the clients know, as lines of text. Of one client they stand in the order of events:
//
//	first SEQUENCE                                            smaller sequences are of an earlier run
//	write CLIENT KEY SEQUENCE SENT_MONO SENT_WALL ACKED_MONO ACKED_WALL   ns; acked 0 0 if no answer came
//	audit CLIENT WALL                                         reconnected; reads of its newest writes follow
//	found CLIENT KEY SEQUENCE                                 0 for no value; -1 for a corrupt one
//
// Monotonic times count from the start of the load, wall times are those of the client's host.

const foundCorrupt = -1

type write struct {
	client   int
	key      string
	sequence uint64
	sent     instant
	acked    instant // Zero if no answer came: the write may or may not have taken effect.
}

// instant is one moment on both clocks, in nanoseconds.
type instant struct{ mono, wall int64 }

func (i instant) isZero() bool { return i.wall == 0 }

type recorder struct {
	mu   sync.Mutex
	file *os.File
	out  *bufio.Writer
}

// newRecorder writes to path, or nowhere if it is empty.
func newRecorder(path string, first uint64) (*recorder, error) {
	if path == "" {
		return nil, nil
	}
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	r := &recorder{file: file, out: bufio.NewWriterSize(file, 256<<10)}
	r.line("first %d\n", first)
	return r, nil
}

func (r *recorder) line(format string, arguments ...any) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, format, arguments...)
}

func (r *recorder) write(w write) {
	r.line("write %d %s %d %d %d %d %d\n", w.client, w.key, w.sequence, w.sent.mono, w.sent.wall, w.acked.mono, w.acked.wall)
}

func (r *recorder) audit(client int) {
	r.line("audit %d %d\n", client, time.Now().UnixNano())
}

func (r *recorder) found(client int, key string, sequence int64) {
	r.line("found %d %s %d\n", client, key, sequence)
}

// flush makes what was recorded so far readable by others.
func (r *recorder) flush() error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.Flush()
}

func (r *recorder) close() error {
	if r == nil {
		return nil
	}
	if err := r.flush(); err != nil {
		return err
	}
	return r.file.Close()
}

// readRecord replays a record into the history. A last line that is cut short is of a load that was killed.
func readRecord(in io.Reader, h *history) error {
	lines := bufio.NewReaderSize(in, 256<<10)
	for number := 1; ; number++ {
		line, err := lines.ReadString('\n')
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = replayLine(line, h)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
	}
}

func replayLine(line string, h *history) error {
	verb, rest, _ := strings.Cut(line, " ")
	var client int
	var key string
	switch verb {
	case "first":
		return scan(rest, &h.first)
	case "write":
		var w write
		err := scan(rest, &w.client, &w.key, &w.sequence, &w.sent.mono, &w.sent.wall, &w.acked.mono, &w.acked.wall)
		if err == nil {
			h.addWrite(w)
		}
		return err
	case "audit":
		var wall int64
		err := scan(rest, &client, &wall)
		if err == nil {
			h.beginAudit(client)
		}
		return err
	case "found":
		var sequence int64
		err := scan(rest, &client, &key, &sequence)
		if err == nil {
			h.addFound(client, key, sequence)
		}
		return err
	default:
		return fmt.Errorf("unknown event %q", verb)
	}
}

func scan(fields string, into ...any) error {
	_, err := fmt.Sscan(fields, into...)
	return err
}
