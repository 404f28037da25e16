package main

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"sync/atomic"
	"syscall"
	"time"
)

func allHazards(profile bool) []*hazard {
	hazards := []*hazard{
		{name: "collections", run: collections},
		{name: "ticks", run: ticks},
		{name: "timer chain", run: timerChain},
		{name: "pipes", run: pipes},
		{name: "loopback", run: loopback},
		{name: "signals", run: signals},
		{name: "faults", run: faults},
		{name: "threads", run: threads},
		{name: "clock", run: clock},
		{name: "heap", run: heap},
	}
	if profile {
		hazards = append(hazards, &hazard{name: "profiles", run: profiles})
	}
	return hazards
}

// collections stops the world again and again while two goroutines run loops without any call, which only a
// SIGURG can preempt: one that gets lost hangs the collection for ever. In between all is quiet, so that the
// scheduler also comes to wait in epoll_wait.
func collections(beat func()) error {
	for {
		var stop atomic.Bool
		for range 2 {
			go func() {
				for !stop.Load() {
				}
			}()
		}
		for range 3 {
			runtime.GC()
		}
		stop.Store(true)
		beat()
		time.Sleep(10 * time.Millisecond)
	}
}

// ticks counts that a ticker neither stops nor runs early: it may be late, by a pause, but its times only grow.
func ticks(beat func()) error {
	const interval = 5 * time.Millisecond
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	last := <-ticker.C
	for {
		select {
		case now := <-ticker.C:
			if now.Before(last) {
				return fmt.Errorf("tick at %v after one at %v", now, last)
			}
			last = now
			beat()
		case <-time.After(progressLimit):
			return fmt.Errorf("no tick of %v for %v", interval, progressLimit)
		}
	}
}

// timerChain sets one short timer at a time, from a goroutine that then waits. Where all else waits too, the
// new timer has to wake the thread that sits in epoll_wait: by the runtime's eventfd.
func timerChain(beat func()) error {
	fired := make(chan time.Time, 1)
	for {
		wait := time.Duration(1+rand.IntN(3000)) * time.Microsecond
		set := time.Now()
		time.AfterFunc(wait, func() { fired <- time.Now() })
		if elapsed := (<-fired).Sub(set); elapsed < wait {
			return fmt.Errorf("a timer of %v fired after %v", wait, elapsed)
		}
		beat()
	}
}

// pipes bounces counted messages over a pipe and back, through the network poller.
func pipes(beat func()) error {
	thereOut, thereIn, err := os.Pipe()
	if err != nil {
		return err
	}
	backOut, backIn, err := os.Pipe()
	if err != nil {
		return err
	}
	go io.Copy(backIn, thereOut)
	return bounce(thereIn, backOut, beat)
}

// bounce sends numbers and expects each to come back.
func bounce(to io.Writer, from io.Reader, beat func()) error {
	for number := uint64(1); ; number++ {
		sent := fmt.Appendf(nil, "%016x", number)
		if _, err := to.Write(sent); err != nil {
			return err
		}
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(from, got); err != nil {
			return err
		}
		if string(got) != string(sent) {
			return fmt.Errorf("sent %s, got %s", sent, got)
		}
		beat()
		time.Sleep(100 * time.Microsecond)
	}
}

// loopback bounces over connections to itself. A takeover resets them; a reset is an answer, silence is not.
func loopback(beat func()) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go echo(listener)
	for {
		conn, err := net.DialTimeout("tcp", listener.Addr().String(), progressLimit)
		if err != nil {
			return err
		}
		conn.SetDeadline(time.Now().Add(progressLimit))
		err = bounce(conn, conn, func() { conn.SetDeadline(time.Now().Add(progressLimit)); beat() })
		conn.Close()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("a connection to itself is silent: %w", err)
		}
	}
}

func echo(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			go func() { defer conn.Close(); io.Copy(conn, conn) }()
		}
	}
}

// signals sends itself a signal and waits until the runtime has handed it on. Handlers run on the signal stack
// of whatever thread the kernel picks.
func signals(beat func()) error {
	received := make(chan os.Signal, 1)
	signal.Notify(received, syscall.SIGUSR1)
	for {
		if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
			return err
		}
		select {
		case <-received:
			beat()
		case <-time.After(progressLimit):
			return fmt.Errorf("a signal to itself was lost")
		}
		time.Sleep(time.Millisecond)
	}
}

// faults dereferences nil on threads of its own: the fault is taken on that thread's signal stack and becomes
// a panic, which is recovered.
func faults(beat func()) error {
	for number := 0; ; number++ {
		recovered := make(chan bool)
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			defer func() { recovered <- recover() != nil }()
			var nothing *int
			*nothing = number
		}()
		if !<-recovered {
			return errors.New("a nil dereference was no fault")
		}
		beat()
		time.Sleep(time.Millisecond)
	}
}

// threads holds operating system threads, which keep their numbers: the runtime signals them by number.
func threads(beat func()) error {
	const count = 4
	rounds := make(chan error, count)
	for range count {
		go func() {
			runtime.LockOSThread()
			for own := syscall.Gettid(); ; time.Sleep(5 * time.Millisecond) {
				if now := syscall.Gettid(); now != own {
					rounds <- fmt.Errorf("thread %d is now thread %d", own, now)
					return
				}
				rounds <- nil
			}
		}()
	}
	for err := range rounds {
		if err != nil {
			return err
		}
		beat()
	}
	return nil
}

// clock looks at the monotonic clock, by way of the vDSO, as fast as a server under load does.
func clock(beat func()) error {
	start := time.Now()
	last := time.Duration(0)
	for {
		for range 1000 {
			now := time.Since(start)
			if now < last {
				return fmt.Errorf("the monotonic clock jumped back by %v", last-now)
			}
			last = now
		}
		beat()
		time.Sleep(time.Millisecond)
	}
}

// node is part of a tree whose every level is covered by a checksum.
type node struct {
	children [4]*node
	data     []byte
	sum      uint32
}

func newTree(depth int) *node {
	n := &node{data: make([]byte, 16+rand.IntN(200))}
	for i := range n.data {
		n.data[i] = byte(rand.Uint32())
	}
	if depth > 0 {
		for i := range n.children {
			n.children[i] = newTree(depth - 1)
		}
	}
	n.sum = n.computeSum()
	return n
}

func (n *node) computeSum() uint32 {
	sum := crc32.ChecksumIEEE(n.data)
	for _, child := range n.children {
		if child != nil {
			sum = sum*31 + child.sum
		}
	}
	return sum
}

func (n *node) verify() error {
	if n.sum != n.computeSum() {
		return errors.New("a node of the heap does not have the checksum that it was given")
	}
	for _, child := range n.children {
		if child == nil {
			continue
		}
		if err := child.verify(); err != nil {
			return err
		}
	}
	return nil
}

// replaceOne puts a new tree in the place of a random part, and brings the sums above it up to date.
func (n *node) replaceOne(depth int) {
	i := rand.IntN(len(n.children))
	if depth <= 2 {
		n.children[i] = newTree(depth - 1)
	} else {
		n.children[i].replaceOne(depth - 1)
	}
	n.sum = n.computeSum()
}

// heap allocates and drops all the time in several goroutines, and checks all that it holds.
func heap(beat func()) error {
	const depth, workers = 5, 3
	rounds := make(chan error)
	for range workers {
		go func() {
			for tree := newTree(depth); ; time.Sleep(time.Millisecond) {
				for range 20 {
					tree.replaceOne(depth)
				}
				rounds <- tree.verify()
			}
		}()
	}
	for err := range rounds {
		if err != nil {
			return err
		}
		beat()
	}
	return nil
}

// profiles starts and stops CPU profiles, for which the runtime makes a kernel timer for each thread.
func profiles(beat func()) error {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		if err := pprof.StartCPUProfile(io.Discard); err != nil {
			cancel()
			return err
		}
		<-ctx.Done()
		pprof.StopCPUProfile()
		cancel()
		beat()
	}
}
