package main

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	// recentWrites bounds how far back a client looks for lost writes when it has reconnected.
	recentWrites = 4096
	// intactEnough newest writes found in place, one after the other, end that look: the older are safe too.
	intactEnough = 256
)

// worker is one client of a load: one request at a time, so that what it has written is a sequence.
type worker struct {
	*load
	number    int
	client    *client
	sequence  uint64
	inDoubt   map[int]bool // Keys with an unanswered write, never written again: it might still arrive.
	recent    []write      // The newest acknowledged writes, oldest first.
	latencies histogram

	reads, writes, connectionsLost, writesInDoubt, corrupt int64
}

func newWorker(l *load, number int, first uint64) *worker {
	return &worker{
		load:     l,
		number:   number,
		client:   newClient(l.addr, l.timeout),
		sequence: first,
		inDoubt:  make(map[int]bool),
	}
}

// run issues requests until the load is over. It outlives any number of lost connections; it fails only if
// no server is found for long.
func (w *worker) run(ctx context.Context) error {
	defer w.client.close()
	for ctx.Err() == nil {
		if !w.client.connected() {
			if err := w.reconnect(); err != nil {
				return err
			}
			continue
		}
		if !w.takeOp() {
			return nil
		}
		w.request()
	}
	return nil
}

func (w *worker) reconnect() error {
	if err := w.client.connect(time.Now().Add(reconnectLimit)); err != nil {
		return err
	}
	if w.connectionsLost > 0 && w.recorder != nil {
		w.audit()
	}
	return nil
}

func (w *worker) request() {
	sent := w.now()
	var err error
	if rand.IntN(100) < w.readPercent {
		err = w.read(w.randomKey())
	} else {
		err = w.write(w.ownKey(), sent)
	}
	if err != nil {
		w.connectionsLost++
		return
	}
	answered := w.now()
	w.latencies.record(time.Duration(answered.mono - sent.mono))
	w.succeeded(answered)
}

func (w *worker) read(key string) error {
	value, found, err := w.client.get(key)
	if err != nil {
		return err
	}
	w.reads++
	if found {
		if _, err := decodeValue(key, value); err != nil {
			w.corrupt++
		}
	}
	return nil
}

// ownKey is the number of a key that only this client writes and whose last write was answered. If no such
// key is left, one in doubt has to do.
func (w *worker) ownKey() int {
	owned := (w.keys - w.number + w.clients - 1) / w.clients
	for range 64 {
		if number := w.number + w.clients*rand.IntN(owned); !w.inDoubt[number] {
			return number
		}
	}
	return w.number
}

func (w *worker) write(number int, sent instant) error {
	key := keyName(number, w.keyBytes)
	w.sequence++
	done := write{client: w.number, key: key, sequence: w.sequence, sent: sent}
	err := w.client.put(key, encodeValue(key, w.sequence, w.valueBytes))
	if err != nil {
		w.writesInDoubt++
		w.inDoubt[number] = true
	} else {
		w.writes++
		done.acked = w.now()
		w.remember(done)
	}
	w.recorder.write(done)
	return err
}

func (w *worker) remember(done write) {
	if w.recorder == nil {
		return
	}
	if len(w.recent) == 2*recentWrites {
		w.recent = append(w.recent[:0], w.recent[recentWrites:]...)
	}
	w.recent = append(w.recent, done)
}

// audit reads the newest writes back, newest first, before anything newer covers up what was lost. A
// connection that breaks meanwhile ends it; the next one begins anew.
func (w *worker) audit() {
	w.recorder.audit(w.number)
	seen := make(map[string]bool)
	for i, intact := len(w.recent)-1, 0; i >= 0 && intact < intactEnough; i-- {
		last := w.recent[i]
		if seen[last.key] {
			continue
		}
		seen[last.key] = true
		sequence, err := readSequence(w.client, last.key)
		if err != nil {
			w.connectionsLost++
			return
		}
		w.recorder.found(w.number, last.key, sequence)
		if sequence >= 0 && uint64(sequence) >= last.sequence {
			intact++
		} else {
			intact = 0
		}
	}
}

// readSequence returns the sequence number that the key holds, 0 for none, or foundCorrupt.
func readSequence(c *client, key string) (int64, error) {
	value, found, err := c.get(key)
	if err != nil || !found {
		return 0, err
	}
	sequence, err := decodeValue(key, value)
	if err != nil {
		return foundCorrupt, nil
	}
	return int64(sequence), nil
}
