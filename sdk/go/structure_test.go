package checksync

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const promptly = 10 * time.Second

// structuresManager is one end of the protocol, played by a test.
type structuresManager struct {
	t      *testing.T
	socket net.Conn
	reader *frameReader
}

// pair opens structures at a manager that hands over what is held: frames of Put and Store.
func pair(t *testing.T, held []byte) (*Structures, *structuresManager) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	type opened struct {
		structures *Structures
		err        error
	}
	result := make(chan opened, 1)
	go func() {
		structures, err := ConnectStructures(path)
		result <- opened{structures, err}
	}()
	socket, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	m := &structuresManager{t, socket, newFrameReader(socket)}
	m.expect(kindHello, "CKSTRUCT\x01\x00")
	m.send(kindWelcome, "\x01\x00"+number(3))
	m.write(held)
	m.send(kindReady, number(uint64(time.Hour)))
	got := <-result
	if got.err != nil {
		t.Fatal(got.err)
	}
	t.Cleanup(func() { got.structures.Close() })
	return got.structures, m
}

func number(n uint64) string { return string(binary.LittleEndian.AppendUint64(nil, n)) }

func (m *structuresManager) write(bytes []byte) {
	if _, err := m.socket.Write(bytes); err != nil {
		m.t.Error(err)
	}
}

func (m *structuresManager) send(kind byte, body string) {
	m.write(append(appendFrame(nil, kind, len(body)), body...))
}

func (m *structuresManager) expect(kind byte, body string) {
	m.t.Helper()
	m.socket.SetReadDeadline(time.Now().Add(promptly))
	f, err := m.reader.next()
	if err != nil || f.kind != kind || string(f.body) != body {
		m.t.Fatalf("got kind %d %q (%v), not kind %d %q", f.kind, f.body, err, kind, body)
	}
}

// lease answers the library's first question.
func (m *structuresManager) lease(span time.Duration) {
	m.t.Helper()
	m.expect(kindAsk, number(1))
	m.send(kindLease, number(1)+number(uint64(span)))
}

func frameOf(kind byte, name, key, value string) []byte {
	return appendChange(nil, kind, name, key, []byte(value))
}

func body(kind byte, name, key, value string) string {
	return string(frameOf(kind, name, key, value)[5:])
}

func theMap(t *testing.T, s *Structures) *Map {
	t.Helper()
	m, err := s.Map("m")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestStructuresAreHandedBack(t *testing.T) {
	held := append(frameOf(kindPut, "m", "k", "v"), frameOf(kindStore, "s", "", "whole")...)
	structures, m := pair(t, held)
	m.lease(time.Hour)
	value, found, err := theMap(t, structures).Get("k")
	if string(value) != "v" || !found || err != nil {
		t.Fatalf("%q %v %v", value, found, err)
	}
	whole, err := structures.Value("s")
	if err != nil {
		t.Fatal(err)
	}
	value, found, err = whole.Load()
	if string(value) != "whole" || !found || err != nil || structures.Term() != 3 {
		t.Fatalf("%q %v %v term %d", value, found, err, structures.Term())
	}
}

func TestAWriteReturnsAndIsSeenOnceItIsCommitted(t *testing.T) {
	structures, m := pair(t, nil)
	m.lease(time.Hour)
	pairs := theMap(t, structures)
	first, err := pairs.StartPut("k", []byte("v"))
	if err != nil {
		t.Fatal(err)
	}
	m.expect(kindPut, body(kindPut, "m", "k", "v"))
	second, err := pairs.StartDelete("k")
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-first.Done():
		t.Fatal("it returned before it was committed")
	default:
	}
	if _, found, _ := pairs.Get("k"); found {
		t.Fatal("it was seen before it was committed")
	}
	m.send(kindCommitted, number(1))
	if err := first.Wait(); err != nil {
		t.Fatal(err)
	}
	if value, found, _ := pairs.Get("k"); !found || string(value) != "v" {
		t.Fatal("it was not seen when it was committed")
	}
	m.expect(kindDelete, body(kindDelete, "m", "k", ""))
	m.send(kindCommitted, number(2))
	if err := second.Wait(); err != nil {
		t.Fatal(err)
	}
	if length, err := pairs.Len(); length != 0 || err != nil {
		t.Fatal(length, err)
	}
}

func TestChangesOfManyGoroutinesAllArriveAndReturn(t *testing.T) {
	const writers, each = 16, 200
	structures, m := pair(t, nil)
	m.lease(time.Hour)
	pairs := theMap(t, structures)
	var done sync.WaitGroup
	for writer := range writers {
		done.Go(func() {
			for n := range each {
				if err := pairs.Put(fmt.Sprintf("%d-%d", writer, n), []byte("v")); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for count := uint64(1); count <= writers*each; count++ {
		m.socket.SetReadDeadline(time.Now().Add(promptly))
		if f, err := m.reader.next(); err != nil || f.kind != kindPut {
			t.Fatal(f.kind, err)
		}
		m.send(kindCommitted, number(count))
	}
	done.Wait()
	seen := 0
	pairs.Range(func(string, []byte) bool { seen++; return true })
	if length, err := pairs.Len(); length != writers*each || seen != length || err != nil {
		t.Fatal(length, seen, err)
	}
}

func TestAFencedSideFailsWritesAndReadsWithTheNewTerm(t *testing.T) {
	structures, m := pair(t, frameOf(kindPut, "m", "k", "v"))
	m.lease(time.Hour)
	pairs := theMap(t, structures)
	commit, err := pairs.StartPut("k", []byte("w"))
	if err != nil {
		t.Fatal(err)
	}
	m.send(kindFenced, number(4)+"b")
	var fenced *FencedError
	if err := commit.Wait(); !errors.As(err, &fenced) || fenced.Term != 4 || fenced.By != "b" {
		t.Fatal(err)
	}
	if _, _, err := pairs.Get("k"); !errors.As(err, &fenced) {
		t.Fatal(err)
	}
	if err := pairs.Put("k", nil); !errors.As(err, &fenced) || !strings.Contains(err.Error(), "term 4") {
		t.Fatal(err)
	}
}

func TestWhoLooksByItselfEndsTheConnectionThatItHearsIsFenced(t *testing.T) {
	ends, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var sockets [2]*net.UnixConn
	for i, fd := range ends {
		file := os.NewFile(uintptr(fd), "pair")
		socket, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		sockets[i] = socket.(*net.UnixConn)
	}
	connection, err := newStructuresConnection(sockets[0])
	if err != nil {
		t.Fatal(err)
	}
	m := &structuresManager{t, sockets[1], newFrameReader(sockets[1])}
	m.send(kindFenced, number(4)+"b")
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		connection.look(nil)
	}()
	select {
	case <-looked:
	case <-time.After(promptly):
		t.Fatal("it still looks")
	}
	var fenced *FencedError
	if err := connection.failure; !errors.As(err, &fenced) || fenced.Term != 4 {
		t.Fatal(err)
	}
}

func TestAReadWaitsForItsLeaseAndOneThatIsOverGivesNothing(t *testing.T) {
	structures, m := pair(t, frameOf(kindPut, "m", "k", "v"))
	pairs := theMap(t, structures)
	answered := make(chan error, 1)
	go func() {
		_, _, err := pairs.Get("k")
		answered <- err
	}()
	m.lease(0)
	select {
	case err := <-answered:
		t.Fatal("it was answered without a lease", err)
	case <-time.After(20 * time.Millisecond):
	}
	m.socket.Close()
	if err := <-answered; !errors.Is(err, ErrLost) {
		t.Fatal(err)
	}
}

func TestAManagerThatSpeaksNonsenseIsAnErrorAndNoPanic(t *testing.T) {
	for _, nonsense := range []string{
		"\x00\x00\x00\x00\x03", "\xff\xff\xff\xff\x03", "\x01\x00\x00\x00\x03", "\x01\x00\x00\x00\x63", "\x09\x00\x00\x00\x03" + number(1),
	} {
		structures, m := pair(t, nil)
		m.write([]byte(nonsense))
		if _, _, err := theMap(t, structures).Get("k"); err == nil || errors.Is(err, io.EOF) {
			t.Fatalf("%q: %v", nonsense, err)
		}
	}
}

func TestWhatIsTooLongIsRefusedByName(t *testing.T) {
	structures, _ := pair(t, nil)
	var long *TooLongError
	if err := theMap(t, structures).Put(strings.Repeat("k", KeyBytesMax+1), nil); !errors.As(err, &long) || long.What != "key" {
		t.Fatal(err)
	}
	if _, err := structures.Map(strings.Repeat("m", 256)); !errors.As(err, &long) || long.What != "name" {
		t.Fatal(err)
	}
}
