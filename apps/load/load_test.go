package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"checksync/apps/judge/check"
	"checksync/apps/judge/history"
)

const waitLimit = 20 * time.Second

// registers is a server of the kv protocol inside the test, whose connections can be broken and whose data can be put
// back under its clients.
type registers struct {
	listener net.Listener
	mu       sync.Mutex
	pairs    map[string]string
	conns    map[net.Conn]bool
	answers  int
}

func startRegisters(t *testing.T) *registers {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &registers{listener: listener, pairs: make(map[string]string), conns: make(map[net.Conn]bool)}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			r.conns[conn] = true
			r.mu.Unlock()
			go r.serve(conn)
		}
	}()
	return r
}

func (r *registers) serve(conn net.Conn) {
	defer conn.Close()
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		words := strings.Split(lines.Text(), " ")
		r.mu.Lock()
		if !r.conns[conn] {
			r.mu.Unlock()
			return
		}
		answer := r.execute(words)
		r.answers++
		_, err := io.WriteString(conn, answer+"\n")
		r.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (r *registers) execute(words []string) string {
	held, isSet := r.pairs[words[1]]
	switch {
	case words[0] == "PUT":
		r.pairs[words[1]] = words[2]
		return "OK"
	case !isSet:
		return "NONE"
	case words[0] == "GET":
		return "VALUE " + held
	case held != words[2]:
		return "CONFLICT " + held
	default:
		r.pairs[words[1]] = words[3]
		return "OK"
	}
}

// waitForAnswers waits until so many more requests were answered, and holds the server still then.
func (r *registers) waitForAnswers(t *testing.T, more int) {
	t.Helper()
	r.mu.Lock()
	goal := r.answers + more
	for deadline := time.Now().Add(waitLimit); r.answers < goal; {
		r.mu.Unlock()
		if time.Now().After(deadline) {
			t.Error("the load does not go on")
			r.mu.Lock()
			return
		}
		time.Sleep(time.Millisecond)
		r.mu.Lock()
	}
}

func (r *registers) copyPairs() map[string]string {
	pairs := make(map[string]string)
	for key, value := range r.pairs {
		pairs[key] = value
	}
	return pairs
}

func (r *registers) breakAll() {
	for conn := range r.conns {
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
	clear(r.conns)
}

func runLoad(t *testing.T, arguments ...string) (report, error) {
	t.Helper()
	var out bytes.Buffer
	failed := run(arguments, &out)
	var r report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("no report but %q (%v): %v", out.String(), failed, err)
	}
	return r, failed
}

func judgeFile(t *testing.T, path string) check.Verdict {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	operations, err := history.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	return check.Judge(operations, check.Options{Timeout: waitLimit})
}

func TestRightServerIsLinearizableAndEveryRequestIsInTheHistory(t *testing.T) {
	r := startRegisters(t)
	path := filepath.Join(t.TempDir(), "history")
	got, err := runLoad(t, "--address", r.listener.Addr().String(), "--clients", "4", "--pipeline", "3", "--seconds", "0.5",
		"--ratio", "60/20/20", "--keys", "10", "--history", path, "--timeline-ms", "50")
	if err != nil || got.Requests == 0 || got.Swaps == 0 || got.P99Us < got.P50Us || got.P50Us == 0 {
		t.Errorf("%+v: %v", got, err)
	}
	var inTimeline int64
	for _, answers := range got.Timeline {
		inTimeline += answers
	}
	if inTimeline != got.Requests {
		t.Errorf("%d answers, but %d in the timeline", got.Requests, inTimeline)
	}
	v := judgeFile(t, path)
	if v.Linearizable != "yes" || int64(v.Operations) != got.Requests+20 || v.Keys != 10 || v.Unknown != 0 {
		t.Errorf("10 puts before and 10 gets after %d requests: %+v", got.Requests, v)
	}
}

// loadWithRollback puts the server's data back to an earlier state in mid-run, and breaks all connections or none.
func loadWithRollback(t *testing.T, breaks bool, arguments ...string) (report, error, check.Verdict) {
	t.Helper()
	r := startRegisters(t)
	path := filepath.Join(t.TempDir(), "history")
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.waitForAnswers(t, 200)
		earlier := r.copyPairs()
		r.mu.Unlock()
		r.waitForAnswers(t, 100)
		r.pairs = earlier
		if breaks {
			r.breakAll()
		}
		r.mu.Unlock()
	}()
	got, err := runLoad(t, append([]string{"--address", r.listener.Addr().String(), "--clients", "4", "--seconds", "0.5",
		"--ratio", "50/50", "--keys", "20", "--history", path}, arguments...)...)
	<-done
	return got, err, judgeFile(t, path)
}

func TestRollbackIsFoundAsLostWrites(t *testing.T) {
	got, err, v := loadWithRollback(t, true, "--reconnect")
	if err != nil || got.Broken != 4 || got.Reconnects != 4 {
		t.Errorf("four connections were to break and be made anew: %+v: %v", got, err)
	}
	if v.Linearizable != "no" || v.LostWrites == 0 || v.NeverWritten != 0 {
		t.Errorf("the rollback is not found: %+v", v)
	}
}

func TestBrokenConnectionIsAnErrorWithoutReconnect(t *testing.T) {
	got, err, _ := loadWithRollback(t, true)
	if err == nil || got.Broken != 4 || got.Reconnects != 0 || len(got.Failures) != 4 {
		t.Errorf("four connections were to break: %+v: %v", got, err)
	}
}

func TestHalfAValueIsCountedAndFound(t *testing.T) {
	r := startRegisters(t)
	path := filepath.Join(t.TempDir(), "history")
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.waitForAnswers(t, 100)
		for key, value := range r.pairs {
			r.pairs[key] = value[:40] + strings.Repeat("x", 10) + value[50:]
		}
		r.mu.Unlock()
	}()
	got, err := runLoad(t, "--address", r.listener.Addr().String(), "--seconds", "0.3", "--keys", "20", "--history", path)
	<-done
	if v := judgeFile(t, path); err == nil || got.Corrupt == 0 || v.Linearizable != "no" || v.NeverWritten == 0 {
		t.Errorf("%+v: %v: %+v", got, err, v)
	}
}

func TestLongestGapIsOfTheServerThatStoodStill(t *testing.T) {
	r := startRegisters(t)
	const still = 150 * time.Millisecond
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.waitForAnswers(t, 100)
		time.Sleep(still)
		r.mu.Unlock()
	}()
	got, err := runLoad(t, "--address", r.listener.Addr().String(), "--clients", "2", "--seconds", "0.5")
	<-done
	if err != nil || got.GapMsMin < 150 || got.GapMsMax < got.GapMsMin || got.Broken != 0 {
		t.Errorf("both clients waited 150 ms: %+v: %v", got, err)
	}
}

// startRedis needs the server on the PATH; where all tests are asked for it must be there.
func startRedis(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CHECKSYNC_TESTS") == "all" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	port := freePort(t)
	server := exec.Command(path, "--port", fmt.Sprint(port), "--bind", "127.0.0.1", "--save", "", "--dir", t.TempDir())
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Process.Kill(); server.Wait() })
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	for deadline := time.Now().Add(waitLimit); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			return addr
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

func TestRedisIsLinearizable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	got, err := runLoad(t, "--target", "redis", "--address", startRedis(t), "--clients", "4", "--pipeline", "4",
		"--seconds", "0.5", "--ratio", "40/30/30", "--keys", "5", "--history", path)
	if err != nil || got.Swaps == 0 || got.SwapConflicts == 0 || got.SwapConflicts == got.Swaps {
		t.Errorf("%+v: %v", got, err)
	}
	if v := judgeFile(t, path); v.Linearizable != "yes" {
		t.Errorf("%+v", v)
	}
}

func TestMixesThatAreNoneAreRefused(t *testing.T) {
	for _, text := range []string{"", "90", "0/0", "a/b", "1/2/3/4", "-1/2"} {
		if m, err := parseMix(text); err == nil {
			t.Errorf("%q is taken as %+v", text, m)
		}
	}
}
