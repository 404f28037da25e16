package checksync

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// docs/structures.md has the frames.
const (
	protocolVersion = 1
	nameBytesMax    = 255
	headBytes       = 5
	frameBytesMax   = 1 + headBytes + nameBytesMax + KeyBytesMax + ValueBytesMax

	kindHello = 1
	kindAsk   = 2

	kindWelcome   = 1
	kindReady     = 2
	kindCommitted = 3
	kindLease     = 4
	kindFenced    = 5
	kindRefused   = 6

	kindPut    = 16
	kindDelete = 17
	kindStore  = 18
)

func appendFrame(out []byte, kind byte, length int) []byte {
	out = binary.LittleEndian.AppendUint32(out, uint32(1+length))
	return append(out, kind)
}

func appendHello(out []byte) []byte {
	out = append(appendFrame(out, kindHello, 10), "CKSTRUCT"...)
	return binary.LittleEndian.AppendUint16(out, protocolVersion)
}

func appendQuestion(out []byte, number uint64) []byte {
	return binary.LittleEndian.AppendUint64(appendFrame(out, kindAsk, 8), number)
}

func appendChange(out []byte, kind byte, name, key string, value []byte) []byte {
	out = appendFrame(out, kind, headBytes+len(name)+len(key)+len(value))
	out = append(out, byte(len(name)))
	out = binary.LittleEndian.AppendUint32(out, uint32(len(key)))
	out = append(out, name...)
	out = append(out, key...)
	return append(out, value...)
}

// frame is one of the manager's; its body is good until the next is read.
type frame struct {
	kind byte
	body []byte
}

type frameReader struct {
	from   *bufio.Reader
	buffer []byte
}

func newFrameReader(from io.Reader) *frameReader {
	return &frameReader{from: bufio.NewReaderSize(from, 64<<10)}
}

func (r *frameReader) next() (frame, error) {
	var head [5]byte
	if _, err := io.ReadFull(r.from, head[:]); err != nil {
		return frame{}, err
	}
	length := binary.LittleEndian.Uint32(head[:])
	if length == 0 || length > frameBytesMax {
		return frame{}, fmt.Errorf("the manager sent a frame of %d bytes, which none has", length)
	}
	if cap(r.buffer) < int(length-1) {
		r.buffer = make([]byte, length-1)
	}
	body := r.buffer[:length-1]
	_, err := io.ReadFull(r.from, body)
	return frame{head[4], body}, err
}

// frameIn takes the first frame of a buffer, and says how long it is; 0 if more bytes are needed.
func frameIn(buffer []byte) (f frame, length int, err error) {
	if len(buffer) < 5 {
		return frame{}, 0, nil
	}
	length = int(binary.LittleEndian.Uint32(buffer))
	if length == 0 || length > frameBytesMax {
		return frame{}, 0, fmt.Errorf("the manager sent a frame of %d bytes, which none has", length)
	}
	if len(buffer) < 4+length {
		return frame{}, 0, nil
	}
	return frame{buffer[4], buffer[5 : 4+length]}, 4 + length, nil
}

var errCut = errors.New("the manager sent a frame that is cut")

// number reads one at an offset.
func (f frame) number(at int) (uint64, error) {
	if len(f.body) < at+8 {
		return 0, errCut
	}
	return binary.LittleEndian.Uint64(f.body[at:]), nil
}

// change takes a change apart.
func (f frame) change() (name, key string, value []byte, err error) {
	if len(f.body) < headBytes {
		return "", "", nil, errCut
	}
	nameLen, keyLen := int(f.body[0]), int(binary.LittleEndian.Uint32(f.body[1:]))
	rest := f.body[headBytes:]
	if keyLen > KeyBytesMax || nameLen+keyLen > len(rest) {
		return "", "", nil, errCut
	}
	return string(rest[:nameLen]), string(rest[nameLen : nameLen+keyLen]), rest[nameLen+keyLen:], nil
}

// refusal is what the manager says last.
func (f frame) refusal() error {
	switch f.kind {
	case kindFenced:
		term, err := f.number(0)
		if err != nil {
			return err
		}
		return &FencedError{Term: term, By: string(f.body[8:])}
	case kindRefused:
		return &RefusedError{Why: string(f.body)}
	default:
		return fmt.Errorf("the manager sent a frame of kind %d, which is not expected here", f.kind)
	}
}
