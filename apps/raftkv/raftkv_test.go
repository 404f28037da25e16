package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
)

const (
	childMark = "RAFTKV_TEST_CHILD"
	waitLimit = 30 * time.Second
)

// TestMain lets the test binary be the program too: the nodes of a cluster are processes.
func TestMain(m *testing.M) {
	if os.Getenv(childMark) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// waitFor polls until the condition holds, or fails the test.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(waitLimit); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain until %s", waitLimit, what)
		}
	}
}

// ask sends requests in one write and reads as many lines of answers.
func ask(addr string, requests ...string) ([]string, error) {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return askOn(conn, bufio.NewReader(conn), requests...)
}

func askOn(conn net.Conn, reader *bufio.Reader, requests ...string) ([]string, error) {
	conn.SetDeadline(time.Now().Add(waitLimit))
	if _, err := io.WriteString(conn, strings.Join(requests, "\n")+"\n"); err != nil {
		return nil, err
	}
	var answers []string
	for range requests {
		line, err := reader.ReadString('\n')
		if err != nil {
			return answers, err
		}
		answers = append(answers, strings.TrimSuffix(line, "\n"))
	}
	return answers, nil
}

// cluster is three nodes as processes.
type cluster struct {
	cmd    *exec.Cmd
	pids   map[string]int // By the address for clients.
	leader string
}

func startCluster(t *testing.T, arguments ...string) *cluster {
	t.Helper()
	c := &cluster{pids: make(map[string]int)}
	c.cmd = exec.Command(os.Args[0], append([]string{"cluster", "--data", t.TempDir()}, arguments...)...)
	c.cmd.Env = append(os.Environ(), childMark+"=1")
	c.cmd.Stderr = os.Stderr
	output, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.cmd.Process.Signal(syscall.SIGTERM)
		if err := c.cmd.Wait(); err != nil {
			t.Errorf("the cluster did not end well: %v", err)
		}
	})
	lines := bufio.NewScanner(output)
	for lines.Scan() && lines.Text() != "ready" {
		var id, pid int
		var addr string
		if _, err := fmt.Sscanf(lines.Text(), "node %d pid %d listening %s", &id, &pid, &addr); err == nil {
			c.pids[addr] = pid
		} else if _, err := fmt.Sscanf(lines.Text(), "listening %s", &addr); err == nil {
			c.leader = addr
		}
	}
	if len(c.pids) != clusterSize || c.leader == "" {
		t.Fatalf("the cluster says it is ready, but only told of %v and leader %q", c.pids, c.leader)
	}
	go io.Copy(io.Discard, output)
	return c
}

// writer counts up one key of its own, and reads it back each time. An unanswered write may be there or not.
type writer struct {
	key          string
	addrs        []string
	acknowledged int
	sent         int
}

func (w *writer) run(ctx context.Context, progress func()) error {
	for turn := 0; ctx.Err() == nil; turn++ {
		conn, err := net.DialTimeout("tcp", w.addrs[turn%len(w.addrs)], time.Second)
		if err != nil {
			continue
		}
		err = w.useUntilBroken(ctx, conn, progress)
		conn.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// useUntilBroken fails only if an answer is wrong.
func (w *writer) useUntilBroken(ctx context.Context, conn net.Conn, progress func()) error {
	reader := bufio.NewReader(conn)
	for ctx.Err() == nil {
		answers, err := askOn(conn, reader, "GET "+w.key)
		if err != nil {
			return nil
		}
		if err := w.check(answers[0]); err != nil {
			return err
		}
		w.sent++
		answers, err = askOn(conn, reader, fmt.Sprintf("PUT %s %d", w.key, w.sent))
		if err != nil {
			return nil
		}
		if answers[0] != "OK" {
			return errors.New("unexpected answer to PUT: " + answers[0])
		}
		w.acknowledged = w.sent
		progress()
	}
	return nil
}

func (w *writer) check(answer string) error {
	held := 0
	if answer != "NONE" {
		var err error
		if held, err = strconv.Atoi(strings.TrimPrefix(answer, "VALUE ")); err != nil {
			return errors.New("unexpected answer to GET: " + answer)
		}
	}
	if held < w.acknowledged || held > w.sent {
		return fmt.Errorf("key %s holds %d, but %d was acknowledged and %d sent", w.key, held, w.acknowledged, w.sent)
	}
	return nil
}

func TestNoAcknowledgedWriteIsLostWhenTheLeaderIsKilled(t *testing.T) {
	c := startCluster(t, "--election", "300ms")
	addrs := []string{c.leader}
	for addr := range c.pids {
		if addr != c.leader {
			addrs = append(addrs, addr)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	counts := make([]int, 4)
	least := func() int { mu.Lock(); defer mu.Unlock(); return min(counts[0], counts[1], counts[2], counts[3]) }
	writers := make([]*writer, len(counts))
	failures := make([]error, len(counts))
	var done sync.WaitGroup
	for i := range writers {
		writers[i] = &writer{key: fmt.Sprintf("key%d", i), addrs: addrs}
		done.Go(func() { failures[i] = writers[i].run(ctx, func() { mu.Lock(); counts[i]++; mu.Unlock() }) })
	}
	waitFor(t, "every client has written 50 times", func() bool { return least() >= 50 })
	if err := syscall.Kill(c.pids[c.leader], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	clear(counts)
	mu.Unlock()
	waitFor(t, "every client has written 50 times to a new leader", func() bool { return least() >= 50 })
	cancel()
	done.Wait()
	if err := errors.Join(failures...); err != nil {
		t.Error(err)
	}
	for _, w := range writers {
		answers, err := ask(addrs[1], "GET "+w.key)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.check(answers[0]); err != nil {
			t.Error(err)
		}
	}
}

// local is a node inside the test.
type local struct {
	*node
	addr string
	stop func()
}

// plan is what all nodes of one test share.
type plan struct {
	dir       string
	peers     map[uint64]string
	localGets bool
}

func newPlan(t *testing.T) *plan {
	t.Helper()
	p := &plan{dir: t.TempDir(), peers: make(map[uint64]string)}
	for id := range uint64(clusterSize) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p.peers[id+1] = listener.Addr().String()
		listener.Close()
	}
	return p
}

func (p *plan) start(t *testing.T, id uint64) *local {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var peerListener net.Listener
	waitFor(t, "the peer's port is free", func() (free bool) {
		var err error
		peerListener, err = net.Listen("tcp", p.peers[id])
		return err == nil
	})
	n, err := newNode(ctx, nodeConfig{
		id: id, dir: filepath.Join(p.dir, strconv.FormatUint(id, 10)), peers: p.peers, localGets: p.localGets,
		election: 200 * time.Millisecond, snapshotEntries: 20, entriesKept: 5,
	}, newStore(0))
	if err != nil {
		t.Fatal(err)
	}
	output, input := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- serveUntilDone(ctx, n, peerListener, "127.0.0.1:0", input) }()
	lines := bufio.NewScanner(output)
	lines.Scan()
	go io.Copy(io.Discard, output)
	l := &local{node: n, addr: strings.TrimPrefix(lines.Text(), "listening ")}
	l.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("node %d: %v", id, err)
		}
	})
	t.Cleanup(l.stop)
	return l
}

func (p *plan) startAll(t *testing.T) []*local {
	t.Helper()
	var nodes []*local
	for id := range uint64(clusterSize) {
		nodes = append(nodes, p.start(t, id+1))
	}
	return nodes
}

// mustAsk asks again while there is no leader; only for requests that may be repeated.
func mustAsk(t *testing.T, addr string, requests ...string) []string {
	t.Helper()
	var answers []string
	waitFor(t, "an answer comes", func() bool {
		var err error
		answers, err = ask(addr, requests...)
		return err == nil
	})
	return answers
}

func TestPipelineIsAnsweredInItsOrderByEveryNode(t *testing.T) {
	for _, n := range newPlan(t).startAll(t) {
		got := strings.Join(mustAsk(t, n.addr, "PUT a 1", "GET a", "PUT a 2", "GET a", "CAS a 2 3", "CAS a 2 4", "GET a", "GET b"), ",")
		if want := "OK,VALUE 1,OK,VALUE 2,OK,CONFLICT 3,VALUE 3,NONE"; got != want {
			t.Errorf("node %d answered %s, not %s", n.id, got, want)
		}
	}
}

func TestNodeThatWasAwayCatchesUpBySnapshot(t *testing.T) {
	p := newPlan(t)
	nodes := p.startAll(t)
	mustAsk(t, nodes[2].addr, "PUT before 1")
	nodes[2].stop()
	for i := range 60 { // Each an entry: more than a snapshot and what is kept before it.
		mustAsk(t, nodes[0].addr, fmt.Sprintf("PUT key%d %d", i, i))
	}
	p.localGets = true
	late := p.start(t, 3)
	for i := range 60 {
		waitFor(t, "the late node has every key", func() bool {
			value, _ := late.data.get(fmt.Sprintf("key%d", i))
			return value == strconv.Itoa(i)
		})
	}
	if _, err := os.Stat(snapshotPath(late.dir)); err != nil {
		t.Errorf("the late node has no snapshot: %v", err)
	}
}

func TestAllNodesStoppedAndStartedHoldWhatWasAcknowledged(t *testing.T) {
	p := newPlan(t)
	nodes := p.startAll(t)
	for i := range 50 { // Two snapshots, and a log that goes on after the second.
		mustAsk(t, nodes[i%clusterSize].addr, fmt.Sprintf("PUT key%d %d", i, i))
	}
	for _, n := range nodes {
		n.stop()
	}
	nodes = p.startAll(t)
	for i := range 50 {
		if got := mustAsk(t, nodes[0].addr, fmt.Sprintf("GET key%d", i))[0]; got != fmt.Sprintf("VALUE %d", i) {
			t.Errorf("key%d is %s", i, got)
		}
	}
}

func TestLeaderWithoutAMajorityAnswersNothing(t *testing.T) {
	p := newPlan(t)
	nodes := p.startAll(t)
	mustAsk(t, nodes[0].addr, "PUT a 1")
	leader := nodes[0].leaderShown.Load() - 1
	for i, n := range nodes {
		if uint64(i) != leader {
			n.stop()
		}
	}
	for _, request := range []string{"PUT a 2", "CAS a 1 2", "GET a"} {
		if answers, err := ask(nodes[leader].addr, request); err == nil {
			t.Errorf("a node alone answered %s by %v", request, answers)
		}
	}
}

func TestLocalGetsNeedNoMajority(t *testing.T) {
	p := newPlan(t)
	p.localGets = true
	n := p.start(t, 1)
	if answers, err := ask(n.addr, "GET a"); err != nil || answers[0] != "NONE" {
		t.Errorf("a local get answered %v, %v", answers, err)
	}
}

func logEntry(index, term uint64) *pb.Entry {
	return &pb.Entry{Index: &index, Term: &term, Data: []byte(fmt.Sprintf("entry %d of term %d", index, term))}
}

func TestLogThatDisagreesWithTheSnapshotIsDropped(t *testing.T) {
	entries := []*pb.Entry{logEntry(4, 1), logEntry(5, 1), logEntry(6, 1)}
	if left := after(entries, 5, 2); len(left) != 0 {
		t.Errorf("entries of another history are kept: %v", left)
	}
	if left := after(entries, 5, 1); len(left) != 1 || left[0].GetIndex() != 6 {
		t.Errorf("left after the snapshot: %v", left)
	}
}
