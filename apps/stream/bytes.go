package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

const (
	chunkBytes = 64 << 10
	// smallChunkBytes is for transfers below smallBytes: of those there may be a thousand at once.
	smallChunkBytes = 16 << 10
	smallBytes      = 16 << 20
)

// fillStream writes the bytes of a seed's stream that stand at offset, which is a multiple of 8: each 8 bytes are
// a mix of the seed and their own place, so that bytes lost, repeated or moved are not what is expected there.
func fillStream(into []byte, seed, offset uint64) {
	var last [8]byte
	for place := offset / 8; len(into) > 0; place++ {
		word := mix(seed + place*0x9e3779b97f4a7c15)
		if len(into) < 8 {
			binary.LittleEndian.PutUint64(last[:], word)
			copy(into, last[:])
			return
		}
		binary.LittleEndian.PutUint64(into, word)
		into = into[8:]
	}
}

// mix is the finalizer of splitmix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// wrongByte is where a stream is not what it should be.
type wrongByte struct{ offset uint64 }

func (e *wrongByte) Error() string {
	return fmt.Sprintf("the byte at offset %d is not the one that was sent there", e.offset)
}

// pace is the course of a transfer: as fast as it goes, or slower, with one pause in the middle.
type pace struct {
	rate  uint64        // Bytes per second; 0 for as fast as it goes.
	pause time.Duration // When half is through.
	moved func(bytes int)
}

// sendStream sends the first total bytes of the seed's stream.
func sendStream(to io.Writer, seed, total uint64, p pace) error {
	chunk := make([]byte, p.chunk(total))
	return p.transfer(total, chunk, func(part []byte, offset uint64) error {
		fillStream(part, seed, offset)
		_, err := to.Write(part)
		return err
	})
}

// checkStream reads total bytes and compares each. Nothing may follow if isEnd.
func checkStream(from io.Reader, seed, total uint64, isEnd bool, p pace) error {
	chunk, expected := make([]byte, p.chunk(total)), make([]byte, p.chunk(total))
	err := p.transfer(total, chunk, func(part []byte, offset uint64) error {
		read, err := io.ReadFull(from, part)
		fillStream(expected[:read], seed, offset)
		if !bytes.Equal(part[:read], expected[:read]) {
			return &wrongByte{offset + uint64(firstDifference(part[:read], expected))}
		}
		if err != nil {
			return fmt.Errorf("the stream ends at offset %d of %d: %w", offset+uint64(read), total, err)
		}
		return nil
	})
	if err != nil || !isEnd {
		return err
	}
	if extra, err := from.Read(chunk); extra > 0 {
		return fmt.Errorf("bytes follow after all %d: %w", total, &wrongByte{total})
	} else if err != io.EOF {
		return fmt.Errorf("no end after all %d bytes: %w", total, err)
	}
	return nil
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// chunk is how much moves at a time: a tenth of a second's worth at most, if there is a rate.
func (p *pace) chunk(total uint64) uint64 {
	size := uint64(chunkBytes)
	if total < smallBytes {
		size = smallChunkBytes
	}
	if p.rate > 0 {
		size = min(size, max(p.rate/10, 8)&^7)
	}
	return size
}

// transfer moves total bytes chunk by chunk, at the pace.
func (p *pace) transfer(total uint64, chunk []byte, move func(part []byte, offset uint64) error) error {
	started := time.Now()
	for offset := uint64(0); offset < total; {
		part := chunk[:min(uint64(len(chunk)), total-offset)]
		if err := move(part, offset); err != nil {
			return err
		}
		isHalf := offset < total/2 && offset+uint64(len(part)) >= total/2
		offset += uint64(len(part))
		if p.moved != nil {
			p.moved(len(part))
		}
		if isHalf && p.pause > 0 {
			time.Sleep(p.pause)
			started = started.Add(p.pause)
		}
		if p.rate > 0 {
			due := time.Duration(float64(offset) / float64(p.rate) * float64(time.Second))
			time.Sleep(due - time.Since(started))
		}
	}
	return nil
}
