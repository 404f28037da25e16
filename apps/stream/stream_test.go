package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

func startServer(t *testing.T) string {
	t.Helper()
	listener := listen(t)
	go newServer().serve(listener)
	return listener.Addr().String()
}

func runReport(t *testing.T, arguments ...string) (report, error) {
	t.Helper()
	var out bytes.Buffer
	failed := runClient(append(arguments, "--timeout", "10s"), &out, func() {})
	var r report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("no report but %q (%v): %v", out.String(), failed, err)
	}
	return r, failed
}

func TestEveryModeMovesEveryByte(t *testing.T) {
	const total = 3_000_001 // The last chunk is odd.
	r, err := runReport(t, "--address", startServer(t), "--connections", "12", "--bytes", "3000001", "--pause", "50ms",
		"--modes", "down,up,half-down,half-up,idle,zero-window")
	if err != nil || r.Verified != 12 || len(r.VerifiedByMode) != len(modes) || r.Bytes != 12*total {
		t.Errorf("%+v: %v", r, err)
	}
}

func TestManyConnectionsAtOnce(t *testing.T) {
	r, err := runReport(t, "--address", startServer(t), "--connections", "300", "--bytes", "20000", "--modes", "down,up,half-up")
	if err != nil || r.Verified != 300 {
		t.Errorf("%+v: %v", r, err)
	}
}

func TestRateIsKept(t *testing.T) {
	r, err := runReport(t, "--address", startServer(t), "--connections", "2", "--bytes", "100000", "--rate", "400000")
	if err != nil || r.Seconds < 0.2 {
		t.Errorf("100,000 bytes at 400,000 a second take a quarter of one: %+v: %v", r, err)
	}
}

// spoiler relays connections, and changes what goes in one direction.
func startSpoiler(t *testing.T, server string, spoilsUp bool, spoil func(io.Writer, io.Reader)) string {
	t.Helper()
	listener := listen(t)
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			upstream, err := net.Dial("tcp", server)
			if err != nil {
				client.Close()
				return
			}
			go relay(client.(*net.TCPConn), upstream.(*net.TCPConn), spoilsUp, spoil)
		}
	}()
	return listener.Addr().String()
}

func relay(client, server *net.TCPConn, spoilsUp bool, spoil func(io.Writer, io.Reader)) {
	var both sync.WaitGroup
	direction := func(to, from *net.TCPConn, isSpoilt bool) {
		if isSpoilt {
			spoil(to, from)
		} else {
			io.Copy(to, from)
		}
		to.CloseWrite()
	}
	both.Go(func() { direction(server, client, spoilsUp) })
	both.Go(func() { direction(client, server, !spoilsUp) })
	both.Wait()
	client.Close()
	server.Close()
}

const spoiltAt = 50_000

func flipOne(to io.Writer, from io.Reader) {
	io.CopyN(to, from, spoiltAt)
	var one [1]byte
	io.ReadFull(from, one[:])
	one[0] ^= 1
	to.Write(one[:])
	io.Copy(to, from)
}

func repeatSome(to io.Writer, from io.Reader) {
	var part bytes.Buffer
	io.CopyN(to, from, spoiltAt)
	io.CopyN(&part, from, 1448)
	to.Write(part.Bytes())
	to.Write(part.Bytes())
	io.Copy(to, from)
}

func dropSome(to io.Writer, from io.Reader) {
	io.CopyN(to, from, spoiltAt)
	io.CopyN(io.Discard, from, 1448)
	io.Copy(to, from)
}

func addOne(to io.Writer, from io.Reader) {
	io.Copy(to, from)
	to.Write([]byte{0})
}

func TestSpoiltBytesAreFoundInBothDirections(t *testing.T) {
	server := startServer(t)
	for name, spoil := range map[string]func(io.Writer, io.Reader){"flipped": flipOne, "repeated": repeatSome, "dropped": dropSome} {
		for mode, isUp := range map[string]bool{"down": false, "half-down": false, "up": true, "half-up": true} {
			address := startSpoiler(t, server, isUp, spoil)
			r, err := runReport(t, "--address", address, "--bytes", "200000", "--modes", mode)
			if err == nil || r.WrongBytes != 1 || r.Verified != 0 {
				t.Errorf("a byte %s on its way in mode %s: %+v: %v", name, mode, r, err)
			}
		}
	}
}

func TestByteAfterTheEndIsFound(t *testing.T) {
	r, err := runReport(t, "--address", startSpoiler(t, startServer(t), false, addOne), "--bytes", "200000", "--modes", "down")
	if err == nil || r.WrongBytes != 1 {
		t.Errorf("%+v: %v", r, err)
	}
}

func TestStreamCutShortIsAFailureButNoWrongByte(t *testing.T) {
	cut := func(to io.Writer, from io.Reader) { io.CopyN(to, from, spoiltAt) }
	r, err := runReport(t, "--address", startSpoiler(t, startServer(t), false, cut), "--bytes", "200000", "--modes", "down")
	if err == nil || r.Failed != 1 || r.WrongBytes != 0 || !strings.Contains(r.Failures[0].Error, "ends at offset 50000") {
		t.Errorf("%+v: %v", r, err)
	}
}

func TestPauseIsNoGapButAStandstillIs(t *testing.T) {
	const still = 200 * time.Millisecond
	wait := func(to io.Writer, from io.Reader) {
		io.CopyN(to, from, spoiltAt)
		time.Sleep(still)
		io.Copy(to, from)
	}
	server := startServer(t)
	r, err := runReport(t, "--address", startSpoiler(t, server, false, wait), "--bytes", "200000", "--modes", "down")
	if err != nil || r.GapMsMax < 150 {
		t.Errorf("the stream stood still for 200 ms: %+v: %v", r, err)
	}
	r, err = runReport(t, "--address", server, "--bytes", "200000", "--modes", "zero-window,idle", "--connections", "2", "--pause", "2s")
	if err != nil || r.Seconds < 2 || r.GapMsMax > 1500 {
		t.Errorf("a pause of two seconds is no gap: %+v: %v", r, err)
	}
}
