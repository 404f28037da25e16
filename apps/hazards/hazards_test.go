package main

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

// running is one monitor for all runs of a test: hazards never end, and a program has one CPU profile.
var running = sync.OnceValue(func() *monitor {
	m := &monitor{hazards: allHazards(true)}
	m.start()
	return m
})

func TestEveryHazardIsPassedWhenNothingIsDoneToIt(t *testing.T) {
	if answer := running().report(); !strings.HasPrefix(answer, "pass {") {
		t.Error(answer)
	}
}

func TestFailureOfOneHazardIsReportedByName(t *testing.T) {
	m := &monitor{hazards: []*hazard{
		{name: "sound", run: ticks},
		{name: "broken", run: func(func()) error { return errors.New("it broke") }},
	}}
	m.start()
	if answer := m.report(); answer != "fail: broken: it broke" {
		t.Error(answer)
	}
}

func TestChangedHeapIsFound(t *testing.T) {
	tree := newTree(3)
	if err := tree.verify(); err != nil {
		t.Fatal(err)
	}
	tree.children[2].children[1].data[5]++
	if tree.verify() == nil {
		t.Error("a changed byte was not found")
	}
}

func TestReplacedPartKeepsTheTreeSound(t *testing.T) {
	tree := newTree(4)
	for range 50 {
		tree.replaceOne(4)
	}
	if err := tree.verify(); err != nil {
		t.Error(err)
	}
}

func TestBounceReportsAnAnswerThatIsNotWhatWasSent(t *testing.T) {
	err := bounce(discard{}, strings.NewReader("0000000000000001000000000000000x"), func() {})
	if err == nil || !strings.Contains(err.Error(), "sent 0000000000000002") {
		t.Errorf("got %v", err)
	}
}

type discard struct{}

func (discard) Write(data []byte) (int, error) { return len(data), nil }

func TestTicksBeat(t *testing.T) {
	beats := make(chan struct{})
	go ticks(func() { beats <- struct{}{} })
	for range 3 {
		select {
		case <-beats:
		case <-time.After(progressLimit):
			t.Fatal("no tick")
		}
	}
}
