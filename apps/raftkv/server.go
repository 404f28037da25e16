package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync"
	"time"
)

// The protocol: one request and one answer per line, over a connection that stays; requests may be pipelined.
//
//	GET key            VALUE value | NONE
//	PUT key value      OK
//	CAS key old new    OK | CONFLICT value | NONE
//	SCAN               PAIR key value (for each), then END
//	STATS              STATS {json}       of this node, asked of no other
//	anything else      ERROR why
//
// Any node answers any request; one that does not lead asks the leader.

const pipelineMax = 256

// fill stores the first count keys, each with sequence number 0.
func fill(data *store, count, keyBytes, valueBytes int) {
	workers := runtime.GOMAXPROCS(0)
	var filled sync.WaitGroup
	for first := range workers {
		filled.Go(func() {
			for number := first; number < count; number += workers {
				key := keyName(number, keyBytes)
				data.put(key, encodeValue(key, 0, valueBytes))
			}
		})
	}
	filled.Wait()
}

// serve answers connections until the listener is closed. A failed accept, as one finds it when descriptors
// run out or a connection was reset in the queue, is waited out.
func serve(listener net.Listener, n *node) error {
	for {
		conn, err := listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			fmt.Fprintln(os.Stderr, "raftkv: accept:", err)
			time.Sleep(5 * time.Millisecond)
		default:
			go serveConn(conn, n)
		}
	}
}

// serveConn answers one client until it leaves. A request whose outcome is not known is answered by closing
// the connection: the client must not take it for one that failed.
func serveConn(conn net.Conn, n *node) {
	defer conn.Close()
	reader := bufio.NewReaderSize(conn, 16<<10)
	for {
		requests, err := readPipeline(reader)
		if err != nil {
			return
		}
		answers, err := n.answer(requests)
		if err != nil {
			return
		}
		if _, err := conn.Write(answers); err != nil {
			return
		}
	}
}

// readPipeline reads one request, and all others that are there already.
func readPipeline(reader *bufio.Reader) ([]string, error) {
	var requests []string
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			return nil, err
		}
		requests = append(requests, strings.TrimSuffix(line, "\n"))
		waiting, _ := reader.Peek(reader.Buffered()) // What is buffered can be peeked at.
		if len(requests) == pipelineMax || bytes.IndexByte(waiting, '\n') < 0 {
			return requests, nil
		}
	}
}

func isWrite(request string) bool {
	return strings.HasPrefix(request, "PUT ") || strings.HasPrefix(request, "CAS ")
}

func isStats(request string) bool { return request == "STATS" }

func answer(w *bufio.Writer, n *node, request string) {
	data := n.data
	verb, rest, _ := strings.Cut(request, " ")
	key, argument, _ := strings.Cut(rest, " ")
	switch verb {
	case "GET":
		value, found := data.get(key)
		answerValue(w, "VALUE ", value, found)
	case "PUT":
		// Cloned: what is stored must not keep the whole request line alive.
		data.put(strings.Clone(key), strings.Clone(argument))
		w.WriteString("OK\n")
	case "CAS":
		old, next, _ := strings.Cut(argument, " ")
		held, found, swapped := data.compareAndSwap(key, old, strings.Clone(next))
		if swapped {
			w.WriteString("OK\n")
		} else {
			answerValue(w, "CONFLICT ", held, found)
		}
	case "SCAN":
		data.scan(func(p pair) { fmt.Fprintf(w, "PAIR %s %s\n", p.key, p.value) })
		w.WriteString("END\n")
	case "STATS":
		w.WriteString("STATS ")
		printJSON(w, collectStats(n))
	default:
		fmt.Fprintf(w, "ERROR unknown request %q\n", verb)
	}
}

func answerValue(w *bufio.Writer, prefix, value string, found bool) {
	if !found {
		w.WriteString("NONE\n")
		return
	}
	w.WriteString(prefix)
	w.WriteString(value)
	w.WriteByte('\n')
}

type stats struct {
	Pid        int    `json:"pid"`
	Keys       int    `json:"keys"`
	Goroutines int    `json:"goroutines"`
	GCCycles   uint64 `json:"gc_cycles"`
	Node       uint64 `json:"node"`
	Leader     uint64 `json:"leader"` // 0 for none.
	Applied    uint64 `json:"applied"`
}

func collectStats(n *node) stats {
	cycles := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(cycles)
	return stats{
		Pid:        os.Getpid(),
		Keys:       n.data.size(),
		Goroutines: runtime.NumGoroutine(),
		GCCycles:   cycles[0].Value.Uint64(),
		Node:       n.id,
		Leader:     n.leaderShown.Load(),
		Applied:    n.appliedShown.Load(),
	}
}
