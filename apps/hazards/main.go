// Command hazards does, all the time and all at once, what a checkpoint of a Go program can break, and checks
// itself: preemption by SIGURG under the garbage collector, timers, netpoll, signal stacks, thread ids, clocks,
// the heap, and the random numbers of the vDSO.
//
//	hazards --listen ADDR [--profile]
//
// It prints `listening ADDR` and `ready`. Over TCP, one request per line:
//
//	check    pass {json} | fail: why      every hazard has made progress since the request
//	random   one fresh random value per line, until the client leaves: none may ever come twice
package main

import (
	"bufio"
	crand "crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// progressLimit is how long a hazard may take to show that it is alive. One that hangs the whole program can't
// even say so: then the answer does not come, and the client's deadline speaks.
const progressLimit = 10 * time.Second

// hazard is one thing that runs for ever. It calls beat after each round that was right.
type hazard struct {
	name  string
	run   func(beat func()) error
	beats atomic.Int64
}

// monitor collects what the hazards report. The first failure stays.
type monitor struct {
	hazards []*hazard
	mu      sync.Mutex
	failure error
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on")
	profile := flag.Bool("profile", false, "also take CPU profiles, which use timers of the kernel")
	flag.Parse()
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		fmt.Fprintln(os.Stderr, "hazards:", err)
		os.Exit(1)
	}
	m := &monitor{hazards: allHazards(*profile)}
	m.start()
	if why := m.check(); why != nil {
		fmt.Fprintln(os.Stderr, "hazards: not even healthy at the start:", why)
		os.Exit(1)
	}
	fmt.Printf("listening %s\nready\n", listener.Addr())
	m.serve(listener)
}

func (m *monitor) start() {
	for _, h := range m.hazards {
		go func() {
			err := h.run(func() { h.beats.Add(1) })
			m.fail(fmt.Errorf("%s: %w", h.name, err))
		}()
	}
}

func (m *monitor) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failure == nil {
		m.failure = err
	}
}

func (m *monitor) failed() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.failure
}

// check waits until every hazard has gone two rounds on: the first may have begun before the request.
func (m *monitor) check() error {
	deadline := time.Now().Add(progressLimit)
	for _, h := range m.hazards {
		for target := h.beats.Load() + 2; h.beats.Load() < target; time.Sleep(time.Millisecond) {
			if err := m.failed(); err != nil {
				return err
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%s made no progress for %v", h.name, progressLimit)
			}
		}
	}
	return m.failed()
}

func (m *monitor) serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		go m.serveConn(conn)
	}
}

func (m *monitor) serveConn(conn net.Conn) {
	defer conn.Close()
	for requests := bufio.NewScanner(conn); requests.Scan(); {
		var err error
		switch requests.Text() {
		case "check":
			_, err = fmt.Fprintln(conn, m.report())
		case "random":
			err = streamRandom(conn)
		default:
			_, err = fmt.Fprintf(conn, "fail: unknown request %q\n", requests.Text())
		}
		if err != nil {
			return
		}
	}
}

func (m *monitor) report() string {
	if err := m.check(); err != nil {
		return "fail: " + err.Error()
	}
	beats := make(map[string]int64)
	for _, h := range m.hazards {
		beats[h.name] = h.beats.Load()
	}
	stats, err := json.Marshal(beats)
	if err != nil {
		return "fail: " + err.Error()
	}
	return "pass " + string(stats)
}

// streamRandom writes values from several threads, each of which has a generator state of its own in the vDSO.
func streamRandom(conn net.Conn) error {
	const threads = 4
	values := make(chan string)
	quit := make(chan struct{})
	defer close(quit)
	for range threads {
		go func() {
			runtime.LockOSThread()
			for {
				var value [16]byte
				crand.Read(value[:])
				select {
				case values <- hex.EncodeToString(value[:]):
				case <-quit:
					return
				}
			}
		}()
	}
	for value := range values {
		if _, err := fmt.Fprintln(conn, value); err != nil {
			return err
		}
		time.Sleep(200 * time.Microsecond)
	}
	return nil
}
