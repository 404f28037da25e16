package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// reconnectLimit is how long a client looks for a server before the load gives up.
	reconnectLimit = 30 * time.Second
	flushInterval  = 50 * time.Millisecond
)

// load is what the clients of one run share.
type load struct {
	addr        string
	clients     int
	readPercent int
	keys        int
	keyBytes    int
	valueBytes  int
	timeout     time.Duration
	opsMax      int64
	started     time.Time
	recorder    *recorder
	opsIssued   atomic.Int64
	gap         gapMeter
	ready       sync.Once
}

// loadReport is what a load prints.
type loadReport struct {
	Ops             int64   `json:"ops"`
	Reads           int64   `json:"reads"`
	Writes          int64   `json:"writes"`
	Seconds         float64 `json:"seconds"`
	OpsPerSecond    float64 `json:"ops_per_second"`
	LatencyP50Us    float64 `json:"latency_p50_us"`
	LatencyP99Us    float64 `json:"latency_p99_us"`
	LatencyMaxUs    float64 `json:"latency_max_us"`
	GapMs           float64 `json:"gap_ms"`
	GapStartWallNs  int64   `json:"gap_start_wall_ns"`
	ConnectionsLost int64   `json:"connections_lost"`
	WritesInDoubt   int64   `json:"writes_in_doubt"`
	Corrupt         int64   `json:"corrupt"`
}

func runLoad(args []string, out io.Writer) error {
	l := &load{}
	flags := flag.NewFlagSet("kv load", flag.ContinueOnError)
	flags.StringVar(&l.addr, "addr", "127.0.0.1:7070", "address of the server")
	flags.IntVar(&l.clients, "clients", 1, "clients, each with one connection and one request at a time")
	flags.IntVar(&l.readPercent, "read-percent", 90, "share of gets")
	flags.IntVar(&l.keys, "keys", 1000, "number of keys; client c writes those whose number is c modulo clients")
	flags.IntVar(&l.keyBytes, "key-bytes", 8, "length of a key")
	flags.IntVar(&l.valueBytes, "value-bytes", 64, "length of a value")
	flags.DurationVar(&l.timeout, "timeout", 250*time.Millisecond, "how long to wait for an answer")
	flags.Int64Var(&l.opsMax, "ops", 0, "stop after this many operations")
	seconds := flags.Float64("seconds", 0, "stop after this long; with neither limit at SIGINT or SIGTERM")
	record := flags.String("record", "", "file to record every write in")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := l.validate(); err != nil {
		return err
	}
	ctx, stop := loadContext(*seconds)
	defer stop()
	report, err := l.run(ctx, *record)
	return errors.Join(err, printJSON(out, report))
}

func (l *load) validate() error {
	switch {
	case l.clients < 1 || l.keys < l.clients:
		return fmt.Errorf("--keys %d must be at least --clients %d, and that at least 1", l.keys, l.clients)
	case l.readPercent < 0 || l.readPercent > 100:
		return fmt.Errorf("--read-percent is %d, not 0 to 100", l.readPercent)
	case l.valueBytes < valueBytesMin:
		return fmt.Errorf("--value-bytes is %d, but a value has at least %d", l.valueBytes, valueBytesMin)
	}
	return nil
}

func loadContext(seconds float64) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	if seconds == 0 {
		return ctx, stop
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds*float64(time.Second)))
	return ctx, func() { cancel(); stop() }
}

// run drives all clients to the end and sums up. What was recorded is on disk when it returns.
func (l *load) run(ctx context.Context, record string) (loadReport, error) {
	l.started = time.Now()
	first := uint64(l.started.UnixNano()) // Above every sequence of an earlier run on the same server.
	var err error
	if l.recorder, err = newRecorder(record, first); err != nil {
		return loadReport{}, err
	}
	workers := make([]*worker, l.clients)
	failures := make([]error, l.clients)
	var done sync.WaitGroup
	for number := range workers {
		workers[number] = newWorker(l, number, first)
		done.Go(func() { failures[number] = workers[number].run(ctx) })
	}
	l.flushUntilDone(&done)
	report := l.sumUp(workers)
	return report, errors.Join(append(failures, l.recorder.close())...)
}

// flushUntilDone keeps the record nearly complete on disk: a test may read it while the load runs.
func (l *load) flushUntilDone(done *sync.WaitGroup) {
	finished := make(chan struct{})
	go func() { done.Wait(); close(finished) }()
	ticks := time.NewTicker(flushInterval)
	defer ticks.Stop()
	for {
		select {
		case <-finished:
			return
		case <-ticks.C:
			l.recorder.flush() // A failure shows again at the last flush, which is reported.
		}
	}
}

func (l *load) sumUp(workers []*worker) loadReport {
	var total loadReport
	var latencies histogram
	for _, w := range workers {
		total.Reads += w.reads
		total.Writes += w.writes
		total.ConnectionsLost += w.connectionsLost
		total.WritesInDoubt += w.writesInDoubt
		total.Corrupt += w.corrupt
		latencies.add(&w.latencies)
	}
	total.Ops = total.Reads + total.Writes
	total.Seconds = time.Since(l.started).Seconds()
	total.OpsPerSecond = float64(total.Ops) / total.Seconds
	total.LatencyP50Us = latencies.quantile(0.5).Seconds() * 1e6
	total.LatencyP99Us = latencies.quantile(0.99).Seconds() * 1e6
	total.LatencyMaxUs = latencies.quantile(1).Seconds() * 1e6
	gap, start := l.gap.largest()
	total.GapMs = gap.Seconds() * 1e3
	if gap > 0 {
		total.GapStartWallNs = l.started.Add(start).UnixNano()
	}
	return total
}

func (l *load) now() instant {
	now := time.Now()
	return instant{mono: int64(now.Sub(l.started)), wall: now.UnixNano()}
}

// takeOp reports whether one more operation may be issued.
func (l *load) takeOp() bool {
	return l.opsMax == 0 || l.opsIssued.Add(1) <= l.opsMax
}

// succeeded notes one answered request.
func (l *load) succeeded(at instant) {
	l.ready.Do(func() { fmt.Fprintln(os.Stderr, "ready") })
	l.gap.reply(time.Duration(at.mono))
}

func (l *load) randomKey() string {
	return keyName(rand.IntN(l.keys), l.keyBytes)
}
