package checksync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// manager serves as one does, with a server that nobody here wrote.
func manager(t *testing.T, answer http.HandlerFunc) *Manager {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "socket")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: answer}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return &Manager{Socket: socket}
}

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestSyncTellsTheCheckpointAndSharesOneConnection(t *testing.T) {
	m := manager(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "POST" || r.URL.RequestURI() != "/v1/sync?patience=1500000us" {
			t.Errorf("asked %s %s", r.Method, r.URL)
		}
		fmt.Fprintln(w, `{"schema":1,"term":2,"epoch":7}`)
	})
	m.Patience = 1500 * time.Millisecond
	for range 3 {
		if told, err := m.Sync(soon(t)); err != nil || told != (Checkpoint{2, 7}) {
			t.Fatalf("%v, %v", told, err)
		}
	}
	if len(m.idle) != 1 {
		t.Errorf("%d connections for calls that came one after the other", len(m.idle))
	}
}

func TestCallsThatComeDuringAQuestionShareTheNext(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan uint64)
	m := manager(t, func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		fmt.Fprintf(w, `{"term":1,"epoch":%d}`, <-answer)
	})
	told := make(chan Checkpoint, 50)
	call := func() {
		now, err := m.Sync(soon(t))
		if err != nil {
			t.Error(err)
		}
		told <- now
	}
	go call()
	<-asked
	for range 49 {
		go call()
	}
	// They have all joined, or it would be a third question.
	for joined := false; !joined; time.Sleep(time.Millisecond) {
		m.mutex.Lock()
		joined = m.next != nil
		m.mutex.Unlock()
	}
	answer <- 1
	if now := <-told; now.Epoch != 1 {
		t.Errorf("%v", now)
	}
	for questions, heard := uint64(2), 1; heard < 50; {
		select {
		case <-asked:
			answer <- questions
			questions++
		case now := <-told:
			heard++
			if now.Epoch < 2 {
				t.Errorf("answered by a question that was older: %v", now)
			}
		}
	}
}

func TestUnprotectedAndOtherRefusalsAreToldApart(t *testing.T) {
	status := 503
	m := manager(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		fmt.Fprintln(w, `{"error":"unprotected","reason":"no standby is connected"}`)
	})
	_, err := m.Sync(soon(t))
	if unprotected := (*Unprotected)(nil); !errors.As(err, &unprotected) || unprotected.Reason != "no standby is connected" {
		t.Errorf("%v", err)
	}
	status = 404
	_, err = m.Role(soon(t))
	if refused := (*Refused)(nil); !errors.As(err, &refused) || refused.Status != 404 {
		t.Errorf("%v", err)
	}
	if _, _, err := (&Manager{}).Epoch(soon(t)); !errors.Is(err, ErrNotProtected) {
		t.Errorf("%v", err)
	}
}

func TestABrokenConnectionIsReplaced(t *testing.T) {
	var served atomic.Int32
	m := manager(t, func(w http.ResponseWriter, _ *http.Request) {
		if served.Add(1) == 2 {
			stream, _, _ := w.(http.Hijacker).Hijack()
			_ = stream.Close()
			return
		}
		fmt.Fprintln(w, `{"term":1,"epoch":null}`)
	})
	for range 2 {
		if _, there, err := m.Epoch(soon(t)); err != nil || there {
			t.Fatalf("%v, %v", there, err)
		}
	}
	if served.Load() != 3 {
		t.Errorf("asked %d times", served.Load())
	}
}

func TestACallEndsWithItsContext(t *testing.T) {
	asked := make(chan struct{})
	m := manager(t, func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
	})
	ended, end := context.WithCancel(context.Background())
	end()
	if _, err := (&Manager{Socket: "/nowhere"}).Sync(ended); err == nil {
		t.Error("a call whose context has ended succeeds")
	}
	ctx, cancel := context.WithCancel(soon(t))
	go func() {
		<-asked
		cancel()
	}()
	if _, err := m.Role(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestOnPromoteCallsOncePerTerm(t *testing.T) {
	var mutex sync.Mutex
	term := 1
	m := manager(t, func(w http.ResponseWriter, r *http.Request) {
		mutex.Lock()
		defer mutex.Unlock()
		if after := r.URL.Query().Get("after"); after == "3" {
			_, _ = io.WriteString(w, "gone")
			return
		} else if after != "" {
			term++
		}
		fmt.Fprintf(w, `{"host":"b","term":%d,"restored":{"term":1,"epoch":9}}`, term)
	})
	ctx, cancel := context.WithCancel(soon(t))
	defer cancel()
	promoted := make(chan Standing, 4)
	if err := m.OnPromote(ctx, func(now Standing) { promoted <- now }); err != nil {
		t.Fatal(err)
	}
	for wanted := uint64(2); wanted <= 3; wanted++ {
		if now := <-promoted; now.Term != wanted || *now.Restored != (Checkpoint{1, 9}) {
			t.Errorf("%+v", now)
		}
	}
}

func TestHalfAnAnswerIsNone(t *testing.T) {
	whole := "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\n{}\n"
	for length := range whole {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = io.WriteString(theirs, whole[:length])
			_ = theirs.Close()
		}()
		if _, _, err := newConnection(ours).read(); err == nil {
			t.Errorf("%q is an answer", whole[:length])
		}
	}
	for _, text := range []string{"SSH-2.0\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", strings.Repeat("x", 9000)} {
		ours, theirs := net.Pipe()
		go func() { _, _ = io.WriteString(theirs, text) }()
		if _, _, err := newConnection(ours).read(); err == nil {
			t.Errorf("%q is an answer", text)
		}
		_ = theirs.Close()
	}
}
