package main

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"

	"checksync"
)

// changes keeps the pairs in a replicated map.
type changes struct{ m *checksync.Map }

func (c changes) get(key string) ([]byte, bool, error) { return c.m.Get(key) }
func (c changes) put(key string, value []byte) error   { return c.m.Put(key, value) }

func (c changes) fill(count, valueBytes int) error {
	if held, err := c.m.Len(); err != nil || held > 0 {
		return err
	}
	var last *checksync.Commit
	for number := range count {
		key := fmt.Sprintf("%08d", number)
		commit, err := c.m.StartPut(key, firstValue(key, valueBytes))
		if err != nil {
			return err
		}
		last = commit
	}
	if last == nil {
		return nil
	}
	return last.Wait()
}

// wholes keeps the pairs in a map of its own, and all of them in one replicated value.
type wholes struct {
	mu    sync.RWMutex
	pairs map[string][]byte
	value *checksync.Value
}

func openWhole(structures *checksync.Structures) (*wholes, error) {
	value, err := structures.Value("pairs")
	if err != nil {
		return nil, err
	}
	encoded, _, err := value.Load()
	if err != nil {
		return nil, err
	}
	w := &wholes{pairs: make(map[string][]byte), value: value}
	for len(encoded) > 0 {
		var key, held []byte
		key, encoded = takePart(encoded)
		held, encoded = takePart(encoded)
		w.pairs[string(key)] = held
	}
	return w, nil
}

func takePart(encoded []byte) (part, rest []byte) {
	length := binary.LittleEndian.Uint32(encoded)
	return encoded[4 : 4+length], encoded[4+length:]
}

func (w *wholes) get(key string) ([]byte, bool, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	value, found := w.pairs[key]
	return value, found, nil
}

// put holds everybody back until the standby has all pairs: nobody is to read what it may not have.
func (w *wholes) put(key string, value []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	before, had := w.pairs[key]
	w.pairs[key] = value
	err := w.value.Store(w.encode())
	switch {
	case err == nil:
	case had:
		w.pairs[key] = before
	default:
		delete(w.pairs, key)
	}
	return err
}

func (w *wholes) encode() []byte {
	size := 0
	for key, value := range w.pairs {
		size += 8 + len(key) + len(value)
	}
	encoded := make([]byte, 0, size)
	for key, value := range w.pairs {
		encoded = binary.LittleEndian.AppendUint32(encoded, uint32(len(key)))
		encoded = append(encoded, key...)
		encoded = binary.LittleEndian.AppendUint32(encoded, uint32(len(value)))
		encoded = append(encoded, value...)
	}
	return encoded
}

func (w *wholes) fill(count, valueBytes int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.pairs) > 0 || count == 0 {
		return nil
	}
	for number := range count {
		key := fmt.Sprintf("%08d", number)
		w.pairs[key] = firstValue(key, valueBytes)
	}
	return w.value.Store(w.encode())
}

// firstValue is what `kv` preloads: sequence number 0, filler, and a checksum over key and all that goes before.
func firstValue(key string, length int) []byte {
	const sumDigits = 8
	value := fmt.Appendf(nil, "%016x", 0)
	for filler := length - len(value) - sumDigits; filler > 0; filler-- {
		value = append(value, 'a'+byte(filler%26))
	}
	sum := crc32.Update(crc32.ChecksumIEEE([]byte(key)), crc32.IEEETable, value)
	return fmt.Appendf(value, "%0*x", sumDigits, sum)
}
