package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"checksync/apps/judge/history"
)

const (
	backoffMin     = time.Millisecond
	backoffMax     = 20 * time.Millisecond
	reconnectLimit = 60 * time.Second
)

// client is one connection: it sends a pipeline of requests, waits for all answers, and sends the next.
type client struct {
	*load
	number  int
	conn    net.Conn
	reader  *bufio.Reader
	random  *rand.Rand
	known   map[string]string // The value that this client saw last, which a swap expects.
	batch   []request
	encoded []byte
	done    []history.Operation
	meter   meter

	gets, puts, swaps, conflicts, missing, unknown, corrupt, broken, reconnects int64
	failure                                                                     error // The first that broke a connection.
}

func newClient(l *load, number int) *client {
	return &client{
		load: l, number: number, known: make(map[string]string), meter: meter{bucket: l.bucket},
		random: rand.New(rand.NewPCG(rand.Uint64(), uint64(number))),
	}
}

func (c *client) dial() error {
	conn, err := net.DialTimeout("tcp", c.address, c.timeout)
	if err == nil {
		c.conn, c.reader = conn, bufio.NewReaderSize(conn, 16<<10)
	}
	return err
}

func (c *client) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// run issues requests until the context ends. Without --reconnect its first broken connection ends it.
func (c *client) run(ctx context.Context) {
	defer func() {
		c.close()
		c.meter.pause(c.elapsed())
	}()
	for ctx.Err() == nil {
		c.batch = c.batch[:0]
		for range c.pipeline {
			c.batch = append(c.batch, c.choose())
		}
		if c.exchange() == nil {
			continue
		}
		if !c.reconnect || !c.redial(ctx) {
			return
		}
	}
}

// choose makes a request up.
func (c *client) choose() request {
	r := request{op: history.Get, key: c.keyNames[c.random.IntN(len(c.keyNames))]}
	switch share := c.random.IntN(c.mix.gets + c.mix.puts + c.mix.swaps); {
	case share < c.mix.gets:
	case share < c.mix.gets+c.mix.puts:
		r.op = history.Put
	default:
		if c.known[r.key] != "" {
			r.op, r.expected = history.Cas, c.known[r.key]
		}
	}
	if r.op != history.Get {
		r.value = encodeValue(r.key, c.sequence.Add(1), c.valueBytes)
	}
	return r
}

// exchange sends the batch and reads its answers. On failure the connection is gone, and the outcome of what was
// not answered is unknown.
func (c *client) exchange() error {
	c.encoded = c.encoded[:0]
	for i := range c.batch {
		c.encoded = c.target.encode(c.encoded, &c.batch[i])
	}
	c.done = c.done[:0]
	call := c.elapsed()
	unanswered, err := c.converse(call)
	if err != nil {
		c.lost(err, call, unanswered)
	}
	c.recorder.Write(c.done)
	return err
}

// converse returns the requests that got no answer.
func (c *client) converse(call time.Duration) ([]request, error) {
	if err := c.send(); err != nil {
		return c.batch, err
	}
	for i := range c.batch {
		a, err := c.target.decode(c.reader, &c.batch[i])
		if err != nil {
			return c.batch[i:], err
		}
		c.answered(&c.batch[i], a, call)
	}
	return nil, nil
}

func (c *client) send() error {
	if err := c.conn.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return err
	}
	_, err := c.conn.Write(c.encoded)
	return err
}

func (c *client) answered(r *request, a answer, call time.Duration) {
	at := c.elapsed()
	c.meter.answered(at, at-call)
	if c.number < c.clients {
		c.firstAnswer.Do(c.sayReady)
	}
	c.count(r, a)
	c.remember(r, a)
	short := ""
	if a.found != "" {
		var isIntact bool
		if short, isIntact = shortValue(r.key, a.found); !isIntact {
			c.corrupt++
		}
	}
	if c.recorder != nil {
		o := c.operation(r, call)
		o.Result, o.Found, o.Return = a.result, short, c.instant(at)
		c.done = append(c.done, o)
	}
}

func (c *client) count(r *request, a answer) {
	switch r.op {
	case history.Get:
		c.gets++
	case history.Put:
		c.puts++
	case history.Cas:
		c.swaps++
	}
	switch a.result {
	case history.Conflict:
		c.conflicts++
	case history.None:
		c.missing++
	}
}

// remember keeps what a swap may expect; only if there are swaps.
func (c *client) remember(r *request, a answer) {
	switch {
	case c.mix.swaps == 0:
	case a.found != "":
		c.known[r.key] = a.found
	case a.result == history.Ok:
		c.known[r.key] = r.value
	}
}

func (c *client) operation(r *request, call time.Duration) history.Operation {
	o := history.Operation{Client: c.number, Op: r.op, Key: r.key, Call: c.instant(call)}
	if r.op != history.Get {
		o.Value, _ = shortValue(r.key, r.value)
		o.Expected, _ = shortValue(r.key, r.expected)
	}
	return o
}

// lost notes a broken connection.
func (c *client) lost(err error, call time.Duration, unanswered []request) {
	c.close()
	c.broken++
	if c.failure == nil {
		c.failure = fmt.Errorf("client %d, %.6f s after the start: %w", c.number, c.elapsed().Seconds(), err)
	}
	c.unknown += int64(len(unanswered))
	if c.recorder == nil {
		return
	}
	for i := range unanswered {
		o := c.operation(&unanswered[i], call)
		o.Result = history.Unknown
		c.done = append(c.done, o)
	}
}

// redial tries until the server is back; false if it does not come.
func (c *client) redial(ctx context.Context) bool {
	deadline := time.Now().Add(reconnectLimit)
	for backoff := backoffMin; ctx.Err() == nil; backoff = min(2*backoff, backoffMax) {
		err := c.dial()
		if err == nil {
			c.reconnects++
			return true
		}
		if time.Now().After(deadline) {
			c.failure = errors.Join(c.failure, fmt.Errorf("no connection for %s: %w", reconnectLimit, err))
			return false
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
	}
	return false
}
