package main

import (
	"math/bits"
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

// meter is what one client measures. It is of one goroutine.
type meter struct {
	latencies histogram
	last      time.Duration // The newest answer, since the start.
	gap       time.Duration // The longest time between two answers.
	gapStart  time.Duration
	perBucket []int64
	bucket    time.Duration // 0 for no timeline.
}

// answered notes an answer at a time since the start.
func (m *meter) answered(at, latency time.Duration) {
	m.latencies.record(latency)
	m.pause(at)
	m.last = at
	if m.bucket == 0 {
		return
	}
	for number := int(at / m.bucket); len(m.perBucket) <= number; {
		m.perBucket = append(m.perBucket, 0)
	}
	m.perBucket[at/m.bucket]++
}

// pause notes that no answer came between the last one and now.
func (m *meter) pause(now time.Duration) {
	if gap := now - m.last; gap > m.gap {
		m.gap, m.gapStart = gap, m.last
	}
}
