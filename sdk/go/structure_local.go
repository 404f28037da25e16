package checksync

import (
	"hash/maphash"
	"sync"
)

const shardCount = 64

// table is a map in shards, so that a reader seldom meets a writer. It holds what is committed.
type table struct {
	seed   maphash.Seed
	shards [shardCount]shard
}

type shard struct {
	mu    sync.RWMutex
	pairs map[string][]byte
	_     [64]byte // A reader's lock shares no cache line with the next shard's.
}

func newTable() *table {
	t := &table{seed: maphash.MakeSeed()}
	for i := range t.shards {
		t.shards[i].pairs = make(map[string][]byte)
	}
	return t
}

func (t *table) shard(key string) *shard {
	return &t.shards[maphash.String(t.seed, key)%shardCount]
}

func (t *table) get(key string) ([]byte, bool) {
	s := t.shard(key)
	s.mu.RLock()
	defer s.mu.RUnlock()
	value, found := s.pairs[key]
	return value, found
}

func (t *table) put(key string, value []byte) {
	s := t.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pairs[key] = value
}

func (t *table) remove(key string) {
	s := t.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pairs, key)
}

func (t *table) len() int {
	total := 0
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.RLock()
		total += len(s.pairs)
		s.mu.RUnlock()
	}
	return total
}

// each holds no lock while the function runs: it may change the map.
func (t *table) each(function func(key string, value []byte) bool) {
	type pair struct {
		key   string
		value []byte
	}
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.RLock()
		pairs := make([]pair, 0, len(s.pairs))
		for key, value := range s.pairs {
			pairs = append(pairs, pair{key, value})
		}
		s.mu.RUnlock()
		for _, p := range pairs {
			if !function(p.key, p.value) {
				return
			}
		}
	}
}

type cell struct {
	mu    sync.RWMutex
	value []byte
	found bool
}

func (c *cell) load() ([]byte, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.value, c.found
}

func (c *cell) store(value []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.value, c.found = value, true
}

// names has the structures of this process by their names.
type names struct {
	mu     sync.Mutex
	tables map[string]*table
	cells  map[string]*cell
}

func newNames() *names {
	return &names{tables: make(map[string]*table), cells: make(map[string]*cell)}
}

func (n *names) table(name string) *table {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.tables[name] == nil {
		n.tables[name] = newTable()
	}
	return n.tables[name]
}

func (n *names) cell(name string) *cell {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cells[name] == nil {
		n.cells[name] = new(cell)
	}
	return n.cells[name]
}
