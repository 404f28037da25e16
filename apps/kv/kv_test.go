package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// rewindable is a server whose data can be put back to an earlier state under all its clients, as a failover
// in timeline mode does.
type rewindable struct {
	listener *net.TCPListener
	data     *store
	mu       sync.Mutex
	conns    []net.Conn
}

func startRewindable(t *testing.T) *rewindable {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &rewindable{listener: listener.(*net.TCPListener), data: newStore(0)}
	t.Cleanup(func() { listener.Close() })
	go serve(r, r.data)
	return r
}

func (r *rewindable) Accept() (net.Conn, error) {
	conn, err := r.listener.Accept()
	if err == nil {
		r.mu.Lock()
		r.conns = append(r.conns, conn)
		r.mu.Unlock()
	}
	return conn, err
}

func (r *rewindable) Close() error   { return r.listener.Close() }
func (r *rewindable) Addr() net.Addr { return r.listener.Addr() }

// failover resets every connection and puts the snapshot back. It holds all buckets, so no request is
// answered between the two, as none is while a program is frozen and replaced.
func (r *rewindable) failover(held map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.data.buckets {
		r.data.buckets[i].mu.Lock()
		defer r.data.buckets[i].mu.Unlock()
	}
	for _, conn := range r.conns {
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
	r.conns = nil
	for i := range r.data.buckets {
		clear(r.data.buckets[i].pairs)
	}
	for key, value := range held {
		r.data.bucketOf(key).pairs[key] = value
	}
}

// waitFor polls until the condition holds, or fails the test.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 10 s in vain until %s", what)
		}
	}
}

// runWithFailover loads a server, lets change spoil the state that a failover goes back to, and verifies.
func runWithFailover(t *testing.T, change func(held map[string]string), limit func(frozen, killed int64) int64) (verdict, loadReport) {
	t.Helper()
	r := startRewindable(t)
	l := &load{addr: r.Addr().String(), clients: 3, readPercent: 30, keys: 3000, keyBytes: 8, valueBytes: 64, timeout: time.Second}
	record := filepath.Join(t.TempDir(), "record")
	ctx, cancel := context.WithCancel(t.Context())
	var report loadReport
	done := make(chan error, 1)
	go func() {
		var err error
		report, err = l.run(ctx, record)
		done <- err
	}()
	waitFor(t, "300 keys are written", func() bool { return r.data.size() >= 300 })
	held, frozen := r.frozenSnapshot()
	waitFor(t, "600 keys are written", func() bool { return r.data.size() >= 600 })
	killed := time.Now().UnixNano()
	change(held)
	r.failover(held)
	waitFor(t, "900 keys are written", func() bool { return r.data.size() >= 900 })
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	h := newHistory(limit(frozen, killed))
	file, err := os.Open(record)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := readRecord(file, h); err != nil {
		t.Fatal(err)
	}
	if err := readBack(newClient(l.addr, time.Second), h); err != nil {
		t.Fatal(err)
	}
	return h.finish(), report
}

// frozenSnapshot copies the data at one instant, and tells the time of it.
func (r *rewindable) frozenSnapshot() (map[string]string, int64) {
	for i := range r.data.buckets {
		r.data.buckets[i].mu.Lock()
		defer r.data.buckets[i].mu.Unlock()
	}
	held := make(map[string]string)
	frozen := time.Now().UnixNano()
	for i := range r.data.buckets {
		maps.Copy(held, r.data.buckets[i].pairs)
	}
	return held, frozen
}

func atFreeze(frozen, _ int64) int64 { return frozen }

func TestFailoverThatLosesOnlyWhatCameAfterTheFreezeIsValid(t *testing.T) {
	judged, report := runWithFailover(t, func(map[string]string) {}, atFreeze)
	if !judged.valid() {
		t.Errorf("a valid prefix is called invalid: %+v", judged)
	}
	if judged.Lost == 0 || judged.LostWindowMs == 0 {
		t.Errorf("the writes between freeze and failover are gone, but none is called lost: %+v", judged)
	}
	if report.ConnectionsLost < 3 || report.Corrupt != 0 {
		t.Errorf("three connections were reset, nothing was corrupted: %+v", report)
	}
}

func TestWriteLostFromBeforeTheFreezeIsFound(t *testing.T) {
	judged, _ := runWithFailover(t, func(map[string]string) {}, func(_, killed int64) int64 { return killed })
	if judged.valid() || judged.LostBeforeLimit == 0 {
		t.Errorf("writes acknowledged before the limit are missing: %+v", judged)
	}
}

func TestValueMixedFromTwoWritesIsCorrupt(t *testing.T) {
	judged, _ := runWithFailover(t, func(held map[string]string) {
		for key, value := range held {
			held[key] = value[:20] + strings.Repeat("x", 10) + value[30:]
		}
	}, atFreeze)
	if judged.Corrupt == 0 || judged.valid() {
		t.Errorf("every value was mixed up: %+v", judged)
	}
}

func TestLosingAWriteButKeepingALaterOneIsNoPrefix(t *testing.T) {
	h := newHistory(0)
	h.first = 1
	for sequence, key := range []string{"a", "b", "c"} {
		h.addWrite(write{key: key, sequence: uint64(sequence + 1), acked: instant{1, 1}})
	}
	h.beginAudit(0)
	h.addFound(0, "a", 1)
	h.addFound(0, "b", 0)
	h.addFound(0, "c", 3)
	if judged := h.finish(); judged.NotPrefix != 1 {
		t.Errorf("b is missing although the later c is there: %+v", judged)
	}
}

func TestLostWriteThatComesBackIsResurrected(t *testing.T) {
	h := newHistory(0)
	h.first = 1
	h.addWrite(write{key: "a", sequence: 1, acked: instant{1, 1}})
	h.beginAudit(0)
	h.addFound(0, "a", 0)
	h.beginAudit(0)
	h.addFound(0, "a", 1)
	if judged := h.finish(); judged.Resurrected != 1 || judged.valid() {
		t.Errorf("a was lost and came back: %+v", judged)
	}
}

func TestValueThatNobodyWroteIsFound(t *testing.T) {
	h := newHistory(0)
	h.first = 10
	h.addWrite(write{key: "a", sequence: 11, acked: instant{1, 1}})
	h.addFound(0, "a", 12)
	if judged := h.finish(); judged.NeverWritten != 1 || judged.valid() {
		t.Errorf("12 was never written: %+v", judged)
	}
}

func TestCompareAndSwapStoresOnlyOverWhatIsHeld(t *testing.T) {
	s := newStore(0)
	if _, found, _ := s.compareAndSwap("k", "a", "b"); found {
		t.Error("a swap found a key that was never set")
	}
	s.put("k", "a")
	if held, _, swapped := s.compareAndSwap("k", "x", "b"); swapped || held != "a" {
		t.Errorf("swapped over %q", held)
	}
	if _, _, swapped := s.compareAndSwap("k", "a", "b"); !swapped {
		t.Error("did not swap over what is held")
	}
}

func TestQuantilesAreWithinOneStep(t *testing.T) {
	var h histogram
	for us := range 1000 {
		h.record(time.Duration(us+1) * time.Microsecond)
	}
	for share, want := range map[float64]time.Duration{0.5: 500 * time.Microsecond, 0.99: 990 * time.Microsecond, 1: time.Millisecond} {
		if got := h.quantile(share); got < want || got > want+want/16 {
			t.Errorf("quantile %v is %v, not about %v", share, got, want)
		}
	}
}

func TestGapIsTheLongestTimeWithoutAnyAnswer(t *testing.T) {
	var g gapMeter
	for _, at := range []time.Duration{1, 2, 10, 11} {
		g.reply(at * time.Millisecond)
	}
	if gap, start := g.largest(); gap != 8*time.Millisecond || start != 2*time.Millisecond {
		t.Errorf("gap %v from %v", gap, start)
	}
}

func TestAWriteIsAnsweredOnlyOnceItIsCommitted(t *testing.T) {
	data := newStore(0)
	refusal := error(nil)
	data.commit = func() error {
		if value, found := data.get("k"); !found || value == "" {
			t.Error("committed before it was written")
		}
		return refusal
	}
	ours, theirs := net.Pipe()
	defer ours.Close()
	go serveConn(theirs, data)
	reader := bufio.NewReader(ours)
	ask := func(request, wanted string) {
		t.Helper()
		go fmt.Fprintln(ours, request)
		if answer, err := reader.ReadString('\n'); err != nil || answer != wanted+"\n" {
			t.Errorf("%s: %q, %v", request, answer, err)
		}
	}
	ask("PUT k v", "OK")
	ask("CAS k v w", "OK")
	refusal = errors.New("nobody protects it")
	ask("PUT k x", "ERROR written, but nobody protects it")
	ask("CAS k x y", "ERROR written, but nobody protects it")
	ask("GET k", "VALUE y")
}
