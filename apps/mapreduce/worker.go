package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"strings"
	"time"
)

const (
	// idle is how long a worker waits when nothing is free.
	idle = 10 * time.Millisecond
	// retry is how long it waits when no coordinator answers.
	retry       = 20 * time.Millisecond
	dialTimeout = 250 * time.Millisecond
)

var errTimeout = errors.New("no answer in time")

// worker does one task after the other.
type worker struct {
	addresses []string
	// patience is how long a call may take, and giveUp how long no coordinator may be found.
	patience, giveUp time.Duration
	// pace is how long a task takes at least, as one of a larger text would.
	pace   time.Duration
	client *rpc.Client
	lost   int
}

func runWork(args []string) error {
	w := &worker{}
	flags := flag.NewFlagSet("mapreduce work", flag.ContinueOnError)
	addresses := flags.String("coordinator", "127.0.0.1:7070", "where the coordinator may be: ADDR[,ADDR…]")
	flags.DurationVar(&w.pace, "pace", 0, "how long a task takes at least")
	flags.DurationVar(&w.patience, "patience", time.Second, "how long to wait for an answer")
	flags.DurationVar(&w.giveUp, "give-up", 30*time.Second, "how long to look for a coordinator")
	if err := flags.Parse(args); err != nil {
		return err
	}
	w.addresses = strings.Split(*addresses, ",")
	err := w.work()
	fmt.Fprintf(os.Stderr, "lost the coordinator %d times\n", w.lost)
	return err
}

// work ends when there is nothing left to do, or when no coordinator is found for long.
func (w *worker) work() error {
	for {
		var next Task
		if err := w.call("Coordinator.Next", Nothing{}, &next); err != nil {
			return err
		}
		if next.Kind == done {
			w.client.Close()
			return nil
		}
		if next.Kind == wait {
			time.Sleep(idle)
			continue
		}
		began := time.Now()
		result := Result{Kind: next.Kind, Number: next.Number}
		if next.Kind == mapping {
			result.Lists = mapped(next.Text, next.Reduces)
		} else {
			result.Lists = [][]count{reduced(next.Parts)}
		}
		time.Sleep(w.pace - time.Since(began))
		if err := w.call("Coordinator.Finished", result, &Nothing{}); err != nil {
			return err
		}
	}
}

// call asks until somebody answers. It may ask twice what was answered once: the coordinator does not mind.
func (w *worker) call(method string, argument, answer any) error {
	deadline := time.Now().Add(w.giveUp)
	for number := 0; ; number++ {
		if err := w.connect(number); err == nil {
			if err := w.ask(method, argument, answer); err == nil {
				return nil
			} else if refused := rpc.ServerError(""); errors.As(err, &refused) {
				return err
			}
			w.client.Close()
			w.client = nil
			w.lost++
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no coordinator at any of %v", w.addresses)
		}
		time.Sleep(retry)
	}
}

func (w *worker) connect(number int) error {
	if w.client != nil {
		return nil
	}
	conn, err := net.DialTimeout("tcp", w.addresses[number%len(w.addresses)], dialTimeout)
	if err != nil {
		return err
	}
	w.client = rpc.NewClient(conn)
	return nil
}

func (w *worker) ask(method string, argument, answer any) error {
	call := w.client.Go(method, argument, answer, make(chan *rpc.Call, 1))
	select {
	case <-call.Done:
		return call.Error
	case <-time.After(w.patience):
		return errTimeout
	}
}
