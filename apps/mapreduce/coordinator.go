package main

import (
	"flag"
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

// Coordinator hands out the map tasks and, once all of them are finished, the reduce tasks. A task that is not finished
// in time is handed out again; of two results the first one counts, and both are the same.
type Coordinator struct {
	mu       sync.Mutex
	texts    [][]byte
	maps     []task
	reduces  []task
	timeout  time.Duration
	out      io.Writer
	finished chan struct{}
}

func newCoordinator(text []byte, maps, reduces int, timeout time.Duration, out io.Writer) *Coordinator {
	texts := splits(text, maps)
	return &Coordinator{
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

// Finished takes a result. It may be of a task that this coordinator does not remember to have handed out.
func (c *Coordinator) Finished(result Result, _ *Nothing) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	tasks, lists, name := c.maps, len(c.reduces), "map"
	if result.Kind == reducing {
		tasks, lists, name = c.reduces, 1, "reduce"
	}
	if result.Number < 0 || result.Number >= len(tasks) || len(result.Lists) != lists {
		return fmt.Errorf("there is no %s task %d with %d lists", name, result.Number, len(result.Lists))
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

// serve answers workers until the listener is closed.
func (c *Coordinator) serve(listener net.Listener) error {
	server := rpc.NewServer()
	if err := server.Register(c); err != nil {
		return err
	}
	go server.Accept(listener)
	return nil
}

func runCoordinate(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("mapreduce coordinate", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:7070", "address to listen on")
	corpus := flags.String("corpus", "", "file with the text")
	maps := flags.Int("maps", 64, "number of map tasks")
	reduces := flags.Int("reduces", 8, "number of reduce tasks")
	timeout := flags.Duration("task-timeout", time.Second, "how long a worker may have a task")
	output := flags.String("output", "", "file for the counts")
	linger := flags.Duration("linger", 2*time.Second, "how long workers are told that there is nothing left")
	if err := flags.Parse(args); err != nil {
		return err
	}
	text, err := os.ReadFile(*corpus)
	if err != nil {
		return err
	}
	c := newCoordinator(text, *maps, *reduces, *timeout, out)
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	defer listener.Close()
	if err := c.serve(listener); err != nil {
		return err
	}
	fmt.Fprintf(out, "listening %s\nready\n", listener.Addr())
	if err := finish(c.counts(), *output, out); err != nil {
		return err
	}
	time.Sleep(*linger)
	return nil
}
