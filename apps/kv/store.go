package main

import (
	"hash/maphash"
	"sync"
)

const bucketCount = 256

// store is a map behind bucket locks. A write holds one bucket for as long as one map operation takes.
type store struct {
	seed    maphash.Seed
	buckets [bucketCount]bucket
	// commit returns once every write before the call is safe, as this server sees it.
	commit func() error
}

type bucket struct {
	mu    sync.RWMutex
	pairs map[string]string
}

// pair is one entry, as a scan hands it out.
type pair struct{ key, value string }

func newStore(sizeHint int) *store {
	s := &store{seed: maphash.MakeSeed(), commit: func() error { return nil }}
	for i := range s.buckets {
		s.buckets[i].pairs = make(map[string]string, sizeHint/bucketCount)
	}
	return s
}

func (s *store) bucketOf(key string) *bucket {
	return &s.buckets[maphash.String(s.seed, key)%bucketCount]
}

func (s *store) get(key string) (string, bool) {
	b := s.bucketOf(key)
	b.mu.RLock()
	defer b.mu.RUnlock()
	value, found := b.pairs[key]
	return value, found
}

func (s *store) put(key, value string) {
	b := s.bucketOf(key)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pairs[key] = value
}

// compareAndSwap stores next if the key holds old. It returns what the key held before.
func (s *store) compareAndSwap(key, old, next string) (held string, found, swapped bool) {
	b := s.bucketOf(key)
	b.mu.Lock()
	defer b.mu.Unlock()
	held, found = b.pairs[key]
	if found && held == old {
		b.pairs[key] = next
		swapped = true
	}
	return held, found, swapped
}

func (s *store) size() int {
	total := 0
	for i := range s.buckets {
		b := &s.buckets[i]
		b.mu.RLock()
		total += len(b.pairs)
		b.mu.RUnlock()
	}
	return total
}

// scan hands out every pair, bucket by bucket; no lock is held while emit runs.
func (s *store) scan(emit func(pair)) {
	for i := range s.buckets {
		for _, p := range s.buckets[i].snapshot() {
			emit(p)
		}
	}
}

func (b *bucket) snapshot() []pair {
	b.mu.RLock()
	defer b.mu.RUnlock()
	pairs := make([]pair, 0, len(b.pairs))
	for key, value := range b.pairs {
		pairs = append(pairs, pair{key, value})
	}
	return pairs
}
