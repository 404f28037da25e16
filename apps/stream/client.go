package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// modes are the ways in which a connection can be used, and what that leaves to be kept over a takeover.
var modes = map[string]func(*transfer) error{
	"down":        (*transfer).down,       // Bytes on their way to the client.
	"up":          (*transfer).up,         // Bytes on their way to the server.
	"half-down":   (*transfer).halfDown,   // The client has closed its side: the server is in CLOSE_WAIT.
	"half-up":     (*transfer).halfUp,     // The server has closed its side: it is in FIN_WAIT2.
	"idle":        (*transfer).idle,       // Up, with a pause in the middle in which nothing is on its way.
	"zero-window": (*transfer).zeroWindow, // Down, with a pause in the middle in which the client reads nothing.
}

// client is what the connections of one run share.
type client struct {
	address string
	bytes   uint64
	seed    uint64
	pause   time.Duration
	rate    uint64
	timeout time.Duration
	run     uint64 // Random: tokens of different runs differ.
	moved   atomic.Uint64
	opened  sync.WaitGroup
}

// transfer is one connection.
type transfer struct {
	*client
	number int
	mode   string
	seed   uint64
	conn   *net.TCPConn
	reader *bufio.Reader
	last   time.Time // When bytes last moved.
	gap    time.Duration
	err    error
}

type report struct {
	Connections    int            `json:"connections"`
	Verified       int            `json:"verified"`
	Failed         int            `json:"failed"`
	WrongBytes     int            `json:"wrong_bytes"` // Failed because a byte was lost, repeated or changed.
	Bytes          uint64         `json:"bytes"`       // That moved, in both directions.
	Seconds        float64        `json:"seconds"`
	BytesPerSecond float64        `json:"bytes_per_second"`
	GapMsMax       float64        `json:"gap_ms_max"` // The longest time that no byte moved on a connection, pauses left out.
	VerifiedByMode map[string]int `json:"verified_by_mode"`
	Failures       []failure      `json:"failures"` // The first of them.
}

type failure struct {
	Connection int    `json:"connection"`
	Mode       string `json:"mode"`
	Error      string `json:"error"`
}

const failuresMax = 20

// errFailed is the answer of a run in which a transfer failed: exit code 1, after the JSON.
var errFailed = errors.New("not every byte arrived in its place")

func runClient(args []string, out io.Writer, ready func()) error {
	c := &client{run: rand.Uint64()}
	flags := flag.NewFlagSet("stream run", flag.ContinueOnError)
	connections := flags.Int("connections", 1, "connections, all at once")
	list := flags.String("modes", "down,up", "how the connections are used, in turn: "+strings.Join(slices.Sorted(maps.Keys(modes)), ", "))
	flags.StringVar(&c.address, "address", "127.0.0.1:7071", "address of the server")
	flags.Uint64Var(&c.bytes, "bytes", 100<<20, "bytes on each connection")
	flags.Uint64Var(&c.seed, "seed", 1, "seed of the bytes; each connection has its own from it")
	flags.DurationVar(&c.pause, "pause", 2*time.Second, "pause of the modes idle and zero-window")
	flags.Uint64Var(&c.rate, "rate", 0, "bytes per second on each connection; 0 for as fast as it goes")
	flags.DurationVar(&c.timeout, "timeout", 30*time.Second, "how long a connection may stand still beside its pause")
	if err := flags.Parse(args); err != nil {
		return err
	}
	names := strings.Split(*list, ",")
	for _, name := range names {
		if modes[name] == nil {
			return fmt.Errorf("--modes has %q, which is none", name)
		}
	}
	if *connections < 1 {
		return errors.New("--connections must be at least 1")
	}
	r := c.transferAll(*connections, names, ready)
	if err := json.NewEncoder(out).Encode(r); err != nil {
		return err
	}
	if r.Failed > 0 {
		return errFailed
	}
	return nil
}

// transferAll runs all connections to their end. It calls ready once each is open, or has failed to.
func (c *client) transferAll(connections int, names []string, ready func()) *report {
	started := time.Now()
	transfers := make([]*transfer, connections)
	var running sync.WaitGroup
	c.opened.Add(connections)
	for number := range transfers {
		t := &transfer{client: c, number: number, mode: names[number%len(names)], seed: mix(c.seed + uint64(number))}
		transfers[number] = t
		running.Go(func() { t.err = t.perform() })
	}
	c.opened.Wait()
	ready()
	running.Wait()
	return c.sumUp(transfers, time.Since(started))
}

func (c *client) sumUp(transfers []*transfer, took time.Duration) *report {
	r := &report{
		Connections: len(transfers), Bytes: c.moved.Load(), Seconds: took.Seconds(),
		VerifiedByMode: make(map[string]int), Failures: []failure{},
	}
	r.BytesPerSecond = float64(r.Bytes) / r.Seconds
	for _, t := range transfers {
		r.GapMsMax = max(r.GapMsMax, float64(t.gap)/1e6)
		if t.err == nil {
			r.Verified++
			r.VerifiedByMode[t.mode]++
			continue
		}
		r.Failed++
		var wrong *wrongByte
		if errors.As(t.err, &wrong) {
			r.WrongBytes++
		}
		if len(r.Failures) < failuresMax {
			r.Failures = append(r.Failures, failure{t.number, t.mode, t.err.Error()})
		}
	}
	return r
}

func (t *transfer) perform() error {
	conn, err := net.DialTimeout("tcp", t.address, t.timeout)
	t.opened.Done()
	if err != nil {
		return err
	}
	defer conn.Close()
	t.conn = conn.(*net.TCPConn)
	t.reader = bufio.NewReader(watched{t})
	t.last = time.Now()
	return modes[t.mode](t)
}

// watched is the connection with a deadline that moves on with each read.
type watched struct{ t *transfer }

func (w watched) Read(into []byte) (int, error) {
	w.t.conn.SetReadDeadline(time.Now().Add(w.t.timeout))
	return w.t.conn.Read(into)
}

func (w watched) Write(from []byte) (int, error) {
	w.t.conn.SetWriteDeadline(time.Now().Add(w.t.timeout))
	return w.t.conn.Write(from)
}

func (t *transfer) pace(pause time.Duration) pace {
	paused := false
	half := t.bytes / 2
	var done uint64
	return pace{rate: t.rate, pause: pause, moved: func(bytes int) {
		t.moved.Add(uint64(bytes))
		now := time.Now()
		gap := now.Sub(t.last)
		if paused {
			gap -= pause
		}
		done += uint64(bytes)
		paused = done >= half && done-uint64(bytes) < half
		t.gap, t.last = max(t.gap, gap), now
	}}
}

func (t *transfer) ask(format string, arguments ...any) error {
	_, err := fmt.Fprintf(watched{t}, format+"\n", arguments...)
	return err
}

func (t *transfer) down() error {
	if err := t.ask("DOWN %d %d", t.seed, t.bytes); err != nil {
		return err
	}
	return checkStream(t.reader, t.seed, t.bytes, true, t.pace(0))
}

func (t *transfer) halfDown() error {
	err := t.ask("DOWN %d %d", t.seed, t.bytes)
	if err == nil {
		err = t.conn.CloseWrite()
	}
	if err != nil {
		return err
	}
	return checkStream(t.reader, t.seed, t.bytes, true, t.pace(0))
}

func (t *transfer) zeroWindow() error {
	if err := t.ask("DOWN %d %d", t.seed, t.bytes); err != nil {
		return err
	}
	return checkStream(t.reader, t.seed, t.bytes, true, t.pace(t.pause))
}

func (t *transfer) up() error { return t.upload(0) }

func (t *transfer) idle() error { return t.upload(t.pause) }

func (t *transfer) upload(pause time.Duration) error {
	err := t.ask("UP %d %d", t.seed, t.bytes)
	if err == nil {
		err = sendStream(watched{t}, t.seed, t.bytes, t.pace(pause))
	}
	if err != nil {
		return err
	}
	return t.readVerdict(t.reader)
}

func (t *transfer) readVerdict(from *bufio.Reader) error {
	answer, err := from.ReadString('\n')
	if err != nil {
		return fmt.Errorf("no verdict: %w", err)
	}
	var wrong wrongByte
	if _, err := fmt.Sscanf(answer, "WRONG %d", &wrong.offset); err == nil {
		return fmt.Errorf("at the server: %w", &wrong)
	}
	if answer != "OK\n" {
		return fmt.Errorf("the server says %s", strings.TrimSuffix(answer, "\n"))
	}
	return nil
}

func (t *transfer) halfUp() error {
	token := fmt.Sprintf("%x-%d", t.run, t.number)
	if err := t.ask("DEAF %s %d %d", token, t.seed, t.bytes); err != nil {
		return err
	}
	if _, err := t.reader.ReadByte(); err != io.EOF {
		return fmt.Errorf("the server did not close its side: %w", err)
	}
	err := sendStream(watched{t}, t.seed, t.bytes, t.pace(0))
	if err == nil {
		err = t.conn.CloseWrite()
	}
	if err != nil {
		return err
	}
	return t.askVerdict(token)
}

// askVerdict asks on a connection of its own: the first has no way back.
func (t *transfer) askVerdict(token string) error {
	ctx, cancel := context.WithTimeout(context.Background(), t.timeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", t.address)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(t.timeout))
	if _, err := fmt.Fprintln(conn, "VERDICT", token); err != nil {
		return err
	}
	return t.readVerdict(bufio.NewReader(conn))
}
