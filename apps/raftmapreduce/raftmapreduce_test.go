package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/rpc"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"checksync/apps/raftnode"
	pb "go.etcd.io/raft/v3/raftpb"
)

const patience = 30 * time.Second

// cluster is three nodes in this process.
type cluster struct {
	t       *testing.T
	dir     string
	peers   string
	workers []string // Where each node listens while it leads.
	stop    []context.CancelFunc
	outputs []*output
	running sync.WaitGroup
}

// output is what a node prints.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) has(text string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Contains(o.text.String(), text)
}

func addresses(t *testing.T, count int) []string {
	t.Helper()
	var found []string
	for range count {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		found = append(found, listener.Addr().String())
	}
	return found
}

func startCluster(t *testing.T, text string) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), workers: addresses(t, 3), stop: make([]context.CancelFunc, 3), outputs: make([]*output, 3)}
	if err := os.WriteFile(filepath.Join(c.dir, "corpus"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var peers []string
	for i, addr := range addresses(t, 3) {
		peers = append(peers, fmt.Sprintf("%d=%s", i+1, addr))
	}
	c.peers = strings.Join(peers, ",")
	for i := range 3 {
		c.start(i)
	}
	t.Cleanup(func() {
		for _, stop := range c.stop {
			stop()
		}
		c.running.Wait()
	})
	return c
}

func (c *cluster) start(i int) {
	ctx, stop := context.WithCancel(c.t.Context())
	c.stop[i], c.outputs[i] = stop, &output{}
	args := []string{
		"--id", fmt.Sprint(i + 1), "--peers", c.peers, "--data", filepath.Join(c.dir, fmt.Sprint(i)),
		"--listen", c.workers[i], "--corpus", filepath.Join(c.dir, "corpus"), "--election", "200ms",
		"--maps", "20", "--reduces", "3", "--task-timeout", "500ms", "--linger", "500ms",
	}
	out := c.outputs[i]
	c.running.Go(func() {
		if err := run(ctx, args, out); err != nil {
			c.t.Error(err)
		}
	})
}

func (c *cluster) waitFor(what string, condition func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// work does tasks until it has done so many, or until there are none; it looks for whoever leads.
func (c *cluster) work(tasks int) {
	deadline := time.Now().Add(patience)
	for number := 0; tasks > 0 && time.Now().Before(deadline); number++ {
		client, err := rpc.Dial("tcp", c.workers[number%3])
		if err != nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		for err == nil && tasks > 0 {
			var next Task
			if err = client.Call("Coordinator.Next", Nothing{}, &next); err != nil || next.Kind == done {
				break
			}
			if next.Kind == wait {
				time.Sleep(time.Millisecond)
				continue
			}
			if err = client.Call("Coordinator.Finished", resultOf(next), &Nothing{}); err == nil {
				tasks--
			}
		}
		client.Close()
		if err == nil {
			return
		}
	}
}

func resultOf(t Task) Result {
	result := Result{Kind: t.Kind, Number: t.Number}
	total := make(map[string]int)
	if t.Kind == mapping {
		result.Lists = make([][]count, t.Reduces)
		for word := range bytes.FieldsSeq(t.Text) {
			total[string(word)]++
		}
		for _, found := range sorted(total) {
			number := len(found.Word) % t.Reduces
			result.Lists[number] = append(result.Lists[number], found)
		}
		return result
	}
	for _, part := range t.Parts {
		for _, found := range part {
			total[found.Word] += found.Times
		}
	}
	result.Lists = [][]count{sorted(total)}
	return result
}

// text is words of different lengths, and what finish prints of them.
func text(t *testing.T) (corpus, printed string) {
	t.Helper()
	total := make(map[string]int)
	var words []string
	for number := range 5000 {
		word := strings.Repeat("w", number%7) + fmt.Sprint(number%101)
		words = append(words, word)
		total[word]++
	}
	var out strings.Builder
	if err := finish(sorted(total), "", &out); err != nil {
		t.Fatal(err)
	}
	return strings.Join(words, " "), out.String()
}

func (c *cluster) leader() int {
	for i := range 3 {
		if conn, err := net.Dial("tcp", c.workers[i]); err == nil {
			conn.Close()
			return i
		}
	}
	return -1
}

func TestAllNodesPrintWhatAPlainLoopCounts(t *testing.T) {
	corpus, printed := text(t)
	c := startCluster(t, corpus)
	go c.work(1000)
	c.work(1000)
	for i, out := range c.outputs {
		c.waitFor(fmt.Sprintf("node %d prints the counts", i+1), func() bool { return out.has(printed) })
	}
}

func TestWhatTheDeadLeaderTookIsNotDoneAgain(t *testing.T) {
	corpus, printed := text(t)
	c := startCluster(t, corpus)
	c.work(12)
	dead := c.leader()
	if dead < 0 {
		t.Fatal("nobody leads after 12 tasks")
	}
	c.stop[dead]()
	other := c.outputs[(dead+1)%3]
	c.waitFor("the 12 results are everywhere", func() bool { return other.has("map 12 of 20\n") })
	// The rest, and nothing else: 8 of the map tasks and 3 of the reduce tasks.
	c.work(11)
	for i := range 3 {
		if i != dead {
			c.waitFor("the others print the counts", func() bool { return c.outputs[i].has(printed) })
		}
	}
}

func TestANodeThatComesBackReadsItsLog(t *testing.T) {
	corpus, printed := text(t)
	c := startCluster(t, corpus)
	c.work(5)
	for i := range 3 {
		c.stop[i]()
	}
	c.running.Wait()
	for i := range 3 {
		c.start(i)
	}
	c.work(18)
	for i, out := range c.outputs {
		c.waitFor(fmt.Sprintf("node %d prints the counts", i+1), func() bool { return out.has(printed) })
	}
}

// calls is a machine that keeps what it is told.
type calls struct {
	told chan string
}

func (c *calls) apply(command []byte) error { c.told <- string(command); return nil }
func (c *calls) lead(leads bool)            { c.told <- fmt.Sprint("leads ", leads) }

func TestANewLeaderOpensItsDoorOnceItHasAppliedWhatWasCommitted(t *testing.T) {
	dir, told := t.TempDir(), &calls{make(chan string, 8)}
	log, _, _, err := raftnode.OpenLog(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	// What a crash leaves: entries on disk, and no word that they are committed.
	var entries []*pb.Entry
	for index := range uint64(3) {
		at, term := index+2, uint64(1)
		entries = append(entries, &pb.Entry{Index: &at, Term: &term, Data: fmt.Appendf(make([]byte, 16), "command %d", index)})
	}
	if err := errors.Join(log.Append(nil, entries, true), log.Close()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	n, err := newNode(ctx, nodeConfig{id: 1, dir: dir, peers: map[uint64]string{1: "nobody"}, election: electionTicks * time.Millisecond}, told)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		if err := n.run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer stop()
	for _, expected := range []string{"command 0", "command 1", "command 2", "leads true"} {
		select {
		case found := <-told.told:
			if found != expected {
				t.Fatalf("%q comes before %q", found, expected)
			}
		case <-time.After(patience):
			t.Fatalf("waited in vain for %q", expected)
		}
	}
}

func TestADamagedResultIsRefused(t *testing.T) {
	c := newCoordinator("", []byte("a b c"), 2, 2, time.Second, io.Discard)
	for _, result := range []Result{
		{Kind: mapping, Number: 7, Lists: make([][]count, 2)},
		{Kind: mapping, Number: 0, Lists: make([][]count, 3)},
		{Kind: reducing, Number: 0, Lists: nil},
	} {
		if err := c.Finished(result, &Nothing{}); err == nil {
			t.Errorf("%+v was taken", result)
		}
	}
}
