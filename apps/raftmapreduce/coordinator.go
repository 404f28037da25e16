package main

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"net/rpc"
	"os"
	"sync"
	"time"
)

// kind says what a worker is to do.
type kind int

const (
	wait kind = iota // Nothing is free now: ask again.
	mapping
	reducing
	done // There is nothing left, and never will be.
)

// Task is what a worker is given, with all that it needs.
type Task struct {
	Kind    kind
	Number  int
	Reduces int
	Text    []byte    // Of a map task.
	Parts   [][]count // Of a reduce task: what each map task found for it.
}

// Result is what comes back: of a map task one list for each reduce task, of a reduce task one list.
type Result struct {
	Kind   kind
	Number int
	Lists  [][]count
}

// Nothing is what an RPC without an argument or an answer has.
type Nothing struct{}

// task is one piece of work, as the coordinator sees it.
type task struct {
	finished bool
	// Until then it is in somebody's hands.
	deadline time.Time
	lists    [][]count
}

var errUnknown = errors.New("the outcome is not known")

// Coordinator hands out the map tasks and, once all of them are finished, the reduce tasks. A task that is not finished
// in time is handed out again; of two results the first one counts, and both are the same.
//
// Results go through the log, and are the same on all nodes; who has which task only the leader knows. Only the leader
// listens: workers look for it.
type Coordinator struct {
	listen   string
	node     *node
	mu       sync.Mutex
	listener net.Listener
	workers  map[net.Conn]bool
	texts    [][]byte
	maps     []task
	reduces  []task
	timeout  time.Duration
	out      io.Writer
	finished chan struct{}
}

func newCoordinator(listen string, text []byte, maps, reduces int, timeout time.Duration, out io.Writer) *Coordinator {
	texts := splits(text, maps)
	return &Coordinator{
		listen:   listen,
		workers:  make(map[net.Conn]bool),
		texts:    texts,
		maps:     make([]task, len(texts)),
		reduces:  make([]task, max(reduces, 1)),
		timeout:  timeout,
		out:      out,
		finished: make(chan struct{}),
	}
}

// Next gives a worker something to do.
func (c *Coordinator) Next(_ Nothing, next *Task) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	next.Reduces = len(c.reduces)
	switch {
	case !allFinished(c.maps):
		if number, found := c.take(c.maps); found {
			next.Kind, next.Number, next.Text = mapping, number, c.texts[number]
		}
	case !allFinished(c.reduces):
		if number, found := c.take(c.reduces); found {
			next.Kind, next.Number = reducing, number
			for _, m := range c.maps {
				next.Parts = append(next.Parts, m.lists[number])
			}
		}
	default:
		next.Kind = done
	}
	return nil
}

// take finds a task that nobody works at, or whose time is over.
func (c *Coordinator) take(tasks []task) (int, bool) {
	now := time.Now()
	for number := range tasks {
		t := &tasks[number]
		if !t.finished && now.After(t.deadline) {
			t.deadline = now.Add(c.timeout)
			return number, true
		}
	}
	return 0, false
}

// Finished takes a result. It may be of a task that this coordinator does not remember to have handed out. Once it
// returns, no death of one node undoes it.
func (c *Coordinator) Finished(result Result, _ *Nothing) error {
	if _, err := c.tasksOf(result); err != nil {
		return err
	}
	var command bytes.Buffer
	if err := gob.NewEncoder(&command).Encode(result); err != nil {
		return err
	}
	if !c.node.propose(context.Background(), command.Bytes()) {
		c.dismiss() // Whoever leads now is asked.
		return errUnknown
	}
	return nil
}

// tasksOf finds the tasks that a result is one of.
func (c *Coordinator) tasksOf(result Result) ([]task, error) {
	tasks, lists := c.maps, len(c.reduces)
	if result.Kind == reducing {
		tasks, lists = c.reduces, 1
	}
	if result.Number < 0 || result.Number >= len(tasks) || len(result.Lists) != lists {
		return nil, fmt.Errorf("there is no %d task %d with %d lists", result.Kind, result.Number, len(result.Lists))
	}
	return tasks, nil
}

// apply takes a result out of the log.
func (c *Coordinator) apply(command []byte) error {
	var result Result
	if err := gob.NewDecoder(bytes.NewReader(command)).Decode(&result); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	tasks, err := c.tasksOf(result)
	if err != nil {
		return err
	}
	name := "map"
	if result.Kind == reducing {
		name = "reduce"
	}
	t := &tasks[result.Number]
	if t.finished || (result.Kind == reducing && !allFinished(c.maps)) {
		return nil
	}
	t.finished, t.lists = true, result.Lists
	fmt.Fprintf(c.out, "%s %d of %d\n", name, finishedOf(tasks), len(tasks))
	if allFinished(c.reduces) {
		close(c.finished)
	}
	return nil
}

func finishedOf(tasks []task) int {
	count := 0
	for _, t := range tasks {
		if t.finished {
			count++
		}
	}
	return count
}

func allFinished(tasks []task) bool { return finishedOf(tasks) == len(tasks) }

// counts waits for the end of the work.
func (c *Coordinator) counts() []count {
	<-c.finished
	c.mu.Lock()
	defer c.mu.Unlock()
	total := make(map[string]int)
	for _, r := range c.reduces {
		for _, found := range r.lists[0] {
			total[found.Word] += found.Times
		}
	}
	return sorted(total)
}

// lead opens the door to workers, or shuts it behind them.
func (c *Coordinator) lead(leads bool) {
	if !leads {
		c.hangUp()
		return
	}
	listener, err := net.Listen("tcp", c.listen)
	if err != nil {
		fmt.Fprintln(os.Stderr, "raftmapreduce: cannot listen:", err)
		return
	}
	c.mu.Lock()
	c.listener = listener
	c.mu.Unlock()
	fmt.Fprintf(c.out, "listening %s\n", listener.Addr())
	go c.serve(listener)
}

// serve answers workers until the listener is closed.
func (c *Coordinator) serve(listener net.Listener) {
	server := rpc.NewServer()
	server.RegisterName("Coordinator", &service{c})
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		isOpen := c.listener == listener
		if isOpen {
			c.workers[conn] = true
		}
		c.mu.Unlock()
		if !isOpen {
			conn.Close()
			return
		}
		go func() {
			server.ServeConn(conn)
			c.mu.Lock()
			delete(c.workers, conn)
			c.mu.Unlock()
		}()
	}
}

// service is what workers may call.
type service struct{ c *Coordinator }

func (s *service) Next(nothing Nothing, next *Task) error { return s.c.Next(nothing, next) }
func (s *service) Finished(result Result, nothing *Nothing) error {
	return s.c.Finished(result, nothing)
}

// hangUp shuts the door: a node that does not lead has nothing to say.
func (c *Coordinator) hangUp() {
	c.mu.Lock()
	if c.listener != nil {
		c.listener.Close()
		c.listener = nil
	}
	c.mu.Unlock()
	c.dismiss()
}

// dismiss closes the workers' connections: an answer that is not known must not look like a refusal.
func (c *Coordinator) dismiss() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.workers {
		conn.Close()
	}
}
