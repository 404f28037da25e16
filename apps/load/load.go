package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"checksync/apps/judge/history"
)

const (
	flushInterval = 50 * time.Millisecond
	// fillPipeline is how many keys are put at a time before the clients begin, and read after they have ended.
	fillPipeline = 128
	failuresMax  = 10
)

// load is what the clients of one run share.
type load struct {
	*config
	began       time.Time // The clock of the history counts from here.
	started     time.Time // Of the measurement.
	startWallNs int64
	keyNames    []string
	sequence    atomic.Uint64 // Of the newest value: no two of a run are equal, nor of two runs.
	recorder    *history.Writer
	firstAnswer sync.Once
}

// report is what a load prints. Times in wall_ns are of this host's clock at the start, plus the time since.
type report struct {
	Clients           int      `json:"clients"`
	Pipeline          int      `json:"pipeline"`
	Seconds           float64  `json:"seconds"`
	Requests          int64    `json:"requests"`
	RequestsPerSecond float64  `json:"requests_per_second"`
	Gets              int64    `json:"gets"`
	Puts              int64    `json:"puts"`
	Swaps             int64    `json:"swaps"`
	SwapConflicts     int64    `json:"swap_conflicts"`
	Missing           int64    `json:"missing"` // Gets and swaps of keys that were not there.
	P50Us             float64  `json:"p50_us"`
	P99Us             float64  `json:"p99_us"`
	P999Us            float64  `json:"p999_us"`
	MaxUs             float64  `json:"max_us"`
	GapMsMax          float64  `json:"gap_ms_max"` // The longest time that a client had no answer.
	GapMsMedian       float64  `json:"gap_ms_median"`
	GapMsMin          float64  `json:"gap_ms_min"`
	GapClient         int      `json:"gap_client"`
	GapStartWallNs    int64    `json:"gap_start_wall_ns"`
	StartWallNs       int64    `json:"start_wall_ns"`
	Broken            int64    `json:"broken_connections"`
	Reconnects        int64    `json:"reconnects"`
	Unknown           int64    `json:"unknown_outcomes"`
	Corrupt           int64    `json:"corrupt_values"`
	Failures          []string `json:"failures"` // Of at most ten clients, the first of each.
	TimelineMs        int64    `json:"timeline_ms,omitempty"`
	Timeline          []int64  `json:"timeline,omitempty"` // Answers in each interval since the start.
	isIncomplete      bool
}

// run drives all clients to the end and sums up. What was recorded is on disk when it returns.
func (c *config) run(ctx context.Context) (*report, error) {
	l := &load{config: c, began: time.Now()}
	l.start()
	l.sequence.Store(uint64(l.began.UnixNano()))
	for number := range c.keys {
		l.keyNames = append(l.keyNames, keyName(number, c.keyBytes))
	}
	if c.history == "" {
		return l.drive(ctx)
	}
	file, err := os.Create(c.history)
	if err != nil {
		return nil, err
	}
	l.recorder = history.NewWriter(file)
	r, err := l.drive(ctx)
	return r, errors.Join(err, l.recorder.Flush(), file.Close())
}

func (l *load) drive(ctx context.Context) (*report, error) {
	if l.fill || l.recorder != nil {
		if err := l.touchAll(ctx, history.Put); err != nil {
			return nil, fmt.Errorf("cannot put the first values: %w", err)
		}
	}
	clients, err := l.connectAll()
	if err != nil {
		return nil, err
	}
	l.start()
	if l.seconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(l.seconds*float64(time.Second)))
		defer cancel()
	}
	l.runAll(ctx, clients)
	r := l.sumUp(clients)
	if l.recorder != nil {
		// With a context of its own: a load that was told to end still reads what is there.
		if err := l.touchAll(context.Background(), history.Get); err != nil {
			r.Failures = append(r.Failures, fmt.Sprintf("cannot read the last values: %v", err))
			r.isIncomplete = true
		}
	}
	return r, nil
}

// start begins the measurement. Its times are of the wall clock at the beginning, which no step of that clock
// changes any more.
func (l *load) start() {
	l.started = time.Now()
	l.startWallNs = l.began.UnixNano() + int64(l.started.Sub(l.began))
}

func (l *load) elapsed() time.Duration { return time.Since(l.started) }

func (l *load) instant(at time.Duration) int64 { return l.startWallNs + int64(at) }

// touchAll puts or reads every key once, by a client of its own.
func (l *load) touchAll(ctx context.Context, op history.Op) error {
	c := newClient(l, l.clients)
	defer c.close()
	if err := c.dial(); err != nil && !(l.reconnect && c.redial(ctx)) {
		return err
	}
	for keys := range slices.Chunk(l.keyNames, fillPipeline) {
		c.batch = c.batch[:0]
		for _, key := range keys {
			r := request{op: op, key: key}
			if op == history.Put {
				r.value = encodeValue(key, l.sequence.Add(1), l.valueBytes)
			}
			c.batch = append(c.batch, r)
		}
		if err := c.exchange(); err != nil {
			return err
		}
	}
	return nil
}

// connectAll makes all connections before the first request.
func (l *load) connectAll() ([]*client, error) {
	clients := make([]*client, l.clients)
	for number := range clients {
		clients[number] = newClient(l, number)
		if err := clients[number].dial(); err != nil {
			for _, c := range clients[:number] {
				c.close()
			}
			return nil, err
		}
	}
	return clients, nil
}

// runAll drives the clients to their end, and keeps the history nearly complete on disk meanwhile.
func (l *load) runAll(ctx context.Context, clients []*client) {
	var running sync.WaitGroup
	for _, c := range clients {
		running.Go(func() { c.run(ctx) })
	}
	finished := make(chan struct{})
	go func() { running.Wait(); close(finished) }()
	ticks := time.NewTicker(flushInterval)
	defer ticks.Stop()
	for {
		select {
		case <-finished:
			return
		case <-ticks.C:
			l.recorder.Flush() // A failure shows again at the last flush, which is reported.
		}
	}
}

func (l *load) sayReady() { fmt.Fprintln(os.Stderr, "ready") }

func (l *load) sumUp(clients []*client) *report {
	r := &report{
		Clients: l.clients, Pipeline: l.pipeline, Seconds: l.elapsed().Seconds(), StartWallNs: l.startWallNs,
		TimelineMs: l.bucket.Milliseconds(), Failures: []string{},
	}
	var gaps []time.Duration
	var latencies histogram
	for _, c := range clients {
		r.add(c)
		latencies.add(&c.meter.latencies)
		gaps = append(gaps, c.meter.gap)
	}
	r.Requests = r.Gets + r.Puts + r.Swaps
	r.RequestsPerSecond = float64(r.Requests) / r.Seconds
	r.P50Us, r.P99Us = microseconds(latencies.quantile(0.5)), microseconds(latencies.quantile(0.99))
	r.P999Us, r.MaxUs = microseconds(latencies.quantile(0.999)), microseconds(latencies.quantile(1))
	slices.Sort(gaps)
	r.GapMsMin, r.GapMsMedian = milliseconds(gaps[0]), milliseconds(gaps[len(gaps)/2])
	return r
}

func (r *report) add(c *client) {
	r.Gets += c.gets
	r.Puts += c.puts
	r.Swaps += c.swaps
	r.SwapConflicts += c.conflicts
	r.Missing += c.missing
	r.Broken += c.broken
	r.Reconnects += c.reconnects
	r.Unknown += c.unknown
	r.Corrupt += c.corrupt
	if gap := milliseconds(c.meter.gap); gap >= r.GapMsMax {
		r.GapMsMax, r.GapClient, r.GapStartWallNs = gap, c.number, c.instant(c.meter.gapStart)
	}
	if c.failure != nil && len(r.Failures) < failuresMax {
		r.Failures = append(r.Failures, c.failure.Error())
	}
	for number, answers := range c.meter.perBucket {
		for len(r.Timeline) <= number {
			r.Timeline = append(r.Timeline, 0)
		}
		r.Timeline[number] += answers
	}
}

// verdict is an error if the run was not what was asked for.
func (r *report) verdict(mayBreak bool) error {
	switch {
	case r.Broken > 0 && !mayBreak:
		return fmt.Errorf("%d connections broke", r.Broken)
	case r.Corrupt > 0:
		return fmt.Errorf("%d values were corrupt", r.Corrupt)
	case r.isIncomplete:
		return errors.New("the history lacks the last values")
	}
	return nil
}

func (r *report) print(out io.Writer) error {
	_, err := fmt.Fprintf(out, "%d clients, pipeline %d: %.0f requests/s, p50 %.0f us, p99 %.0f us, longest gap %.1f ms, %d broken connections\n",
		r.Clients, r.Pipeline, r.RequestsPerSecond, r.P50Us, r.P99Us, r.GapMsMax, r.Broken)
	return err
}

func microseconds(d time.Duration) float64 { return float64(d) / 1e3 }

func milliseconds(d time.Duration) float64 { return float64(d) / 1e6 }
