package main

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

const (
	stepBits = 5 // 32 steps to each power of two: 3 % resolution.
	steps    = 1 << stepBits
)

// histogram counts durations in steps that grow with the duration.
type histogram struct {
	counts [64 * steps]int64
	total  int64
}

func (h *histogram) record(d time.Duration) {
	h.counts[stepOf(uint64(max(d, 0)))]++
	h.total++
}

func (h *histogram) add(other *histogram) {
	for i, count := range other.counts {
		h.counts[i] += count
	}
	h.total += other.total
}

// quantile returns the upper bound of the step in which the given share of all durations is reached.
func (h *histogram) quantile(share float64) time.Duration {
	remaining := int64(share * float64(h.total))
	for i, count := range h.counts {
		remaining -= count
		if count > 0 && remaining <= 0 {
			return time.Duration(stepLimit(i))
		}
	}
	return 0
}

func stepOf(ns uint64) int {
	if ns < steps {
		return int(ns)
	}
	shift := bits.Len64(ns) - stepBits - 1
	return (shift+1)<<stepBits + int(ns>>shift)&(steps-1)
}

func stepLimit(step int) uint64 {
	if step < steps {
		return uint64(step)
	}
	shift := step>>stepBits - 1
	return uint64(steps+step&(steps-1)+1)<<shift - 1
}

// gapMeter finds the longest time in which no client got an answer.
type gapMeter struct {
	last  atomic.Int64
	gapNs atomic.Int64 // The largest gap so far; a cheap test before the lock.
	mu    sync.Mutex
	start time.Duration
}

// reply notes an answer at the given time since the start; the first one only starts the clock.
func (g *gapMeter) reply(at time.Duration) {
	previous := g.last.Swap(int64(at))
	gap := int64(at) - previous
	if previous == 0 || gap <= g.gapNs.Load() {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if gap > g.gapNs.Load() {
		g.gapNs.Store(gap)
		g.start = time.Duration(previous)
	}
}

func (g *gapMeter) largest() (gap, start time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Duration(g.gapNs.Load()), g.start
}
