package main

import (
	"bufio"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/patrickmn/go-cache"
)

func TestWhatWasPutIsGot(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	s := newServer()
	s.fill(2, 10)
	go s.serveConn(theirs)
	reader := bufio.NewReader(ours)
	for _, round := range [][2]string{
		{"GET 00000001", "VALUE xxxxxxxxxx"}, {"GET 00000002", "NONE"}, {"PUT k a b", "OK"}, {"GET k", "VALUE a b"},
		{"DROP k", `ERROR unknown request "DROP"`},
	} {
		go fmt.Fprintln(ours, round[0])
		if answer, err := reader.ReadString('\n'); err != nil || answer != round[1]+"\n" {
			t.Errorf("%s: %q, %v", round[0], answer, err)
		}
	}
}

func TestASnapshotHoldsThePairs(t *testing.T) {
	s := newServer()
	s.fill(100, 10)
	path := filepath.Join(t.TempDir(), "snapshot")
	go s.saveEvery(path, time.Millisecond)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		read := cache.New(cache.NoExpiration, 0)
		if err := read.LoadFile(path); err == nil && read.ItemCount() == 100 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no snapshot holds the pairs")
		}
	}
}
