package main

import (
	"bytes"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func corpus(t *testing.T) []byte {
	t.Helper()
	var text bytes.Buffer
	if err := generate(&text, 200_000, 7); err != nil {
		t.Fatal(err)
	}
	return text.Bytes()
}

// start begins a coordinator on a port of its own.
func start(t *testing.T, text []byte, timeout time.Duration) (*Coordinator, string) {
	t.Helper()
	c := newCoordinator(text, 20, 4, timeout, io.Discard)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	if err := c.serve(listener); err != nil {
		t.Fatal(err)
	}
	return c, listener.Addr().String()
}

func newWorker(address string) *worker {
	return &worker{addresses: []string{address}, patience: 10 * time.Second, giveUp: 10 * time.Second}
}

func TestWorkersCountWhatAPlainLoopCounts(t *testing.T) {
	text := corpus(t)
	c, address := start(t, text, 10*time.Second)
	var working sync.WaitGroup
	for range 3 {
		working.Go(func() {
			if err := newWorker(address).work(); err != nil {
				t.Error(err)
			}
		})
	}
	found := c.counts()
	working.Wait()
	if wanted := sorted(wordsOf(text)); !slices.Equal(found, wanted) {
		t.Errorf("%d words were counted, and there are %d, or they came as often not", len(found), len(wanted))
	}
}

func TestALostWorkersTaskIsDoneByAnother(t *testing.T) {
	text := corpus(t)
	c, address := start(t, text, 50*time.Millisecond)
	lost := newWorker(address)
	var never Task
	if err := lost.call("Coordinator.Next", Nothing{}, &never); err != nil || never.Kind != mapping {
		t.Fatalf("a task was to be handed out: %v, %v", never.Kind, err)
	}
	if err := newWorker(address).work(); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.counts(), sorted(wordsOf(text))) {
		t.Error("the lost task is missing")
	}
}

func TestAResultThatComesTwiceCountsOnce(t *testing.T) {
	text := corpus(t)
	c := newCoordinator(text, 20, 4, time.Nanosecond, io.Discard)
	for {
		var next Task
		if err := c.Next(Nothing{}, &next); err != nil {
			t.Fatal(err)
		}
		if next.Kind == done {
			break
		}
		result := Result{Kind: next.Kind, Number: next.Number, Lists: [][]count{reduced(next.Parts)}}
		if next.Kind == mapping {
			result.Lists = mapped(next.Text, next.Reduces)
		}
		for range 2 {
			if err := c.Finished(result, &Nothing{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !slices.Equal(c.counts(), sorted(wordsOf(text))) {
		t.Error("words were counted twice")
	}
}

func TestAWorkerFindsTheNextCoordinator(t *testing.T) {
	text := corpus(t)
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	c, address := start(t, text, time.Second)
	w := newWorker(address)
	w.addresses = []string{gone.Addr().String(), address}
	if err := w.work(); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.counts(), sorted(wordsOf(text))) {
		t.Error("the wrong words were counted")
	}
}

func TestSplitsAreTheTextAndEndBetweenWords(t *testing.T) {
	text := corpus(t)
	parts := splits(text, 16)
	if !bytes.Equal(bytes.Join(parts, nil), text) || len(parts) != 16 {
		t.Errorf("%d parts that are not the text", len(parts))
	}
	for _, part := range parts {
		if last := part[len(part)-1]; last != ' ' && last != '\n' {
			t.Errorf("a part ends in the middle of a word: %q", part[len(part)-10:])
		}
	}
	if parts := splits([]byte("one"), 4); len(parts) != 1 {
		t.Errorf("one word in %d parts", len(parts))
	}
}

func TestTheSameSeedMakesTheSameText(t *testing.T) {
	var again, other bytes.Buffer
	generate(&again, 200_000, 7)
	generate(&other, 200_000, 8)
	if text := corpus(t); !bytes.Equal(text, again.Bytes()) || bytes.Equal(text, other.Bytes()) {
		t.Error("a seed does not decide the text")
	}
	if frequent := strings.Count(again.String(), "\n"); frequent < 1000 {
		t.Errorf("only %d lines", frequent)
	}
}
