package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync"
	"time"

	"checksync"
)

// The protocol: one request and one answer per line, over a connection that stays; requests may be pipelined.
//
//	GET key            VALUE value | NONE
//	PUT key value      OK
//	CAS key old new    OK | CONFLICT value | NONE
//	SCAN               PAIR key value (for each), then END
//	STATS              STATS {json}
//	anything else      ERROR why
//
// With --sync a write that is in doubt is answered ERROR, too, and a read may see one that is not answered yet.

func runServe(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("kv serve", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:7070", "address to listen on")
	preload := flags.Int("preload", 0, "number of pairs to start with")
	keyBytes := flags.Int("key-bytes", 8, "length of a preloaded key")
	valueBytes := flags.Int("value-bytes", 64, "length of a preloaded value")
	threads := flags.Int("threads", 0, "number of threads to have besides those that it needs")
	commit := flags.Bool("sync", false, "answer a write once it is committed")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *valueBytes < valueBytesMin {
		return fmt.Errorf("--value-bytes is %d, but a value has at least %d", *valueBytes, valueBytesMin)
	}
	data := newStore(*preload)
	fill(data, *preload, *keyBytes, *valueBytes)
	if *commit {
		data.commit = func() error {
			_, err := checksync.Sync(context.Background())
			return err
		}
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	keepThreads(*threads)
	fmt.Fprintf(out, "listening %s\nready\n", listener.Addr())
	return serve(listener, data)
}

// keepThreads has count goroutines wait for ever, each with a thread of its own.
func keepThreads(count int) {
	var there sync.WaitGroup
	there.Add(count)
	for range count {
		go func() {
			runtime.LockOSThread()
			there.Done()
			select {}
		}()
	}
	there.Wait()
}

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
func serve(listener net.Listener, data *store) error {
	for {
		conn, err := listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			fmt.Fprintln(os.Stderr, "kv: accept:", err)
			time.Sleep(5 * time.Millisecond)
		default:
			go serveConn(conn, data)
		}
	}
}

// serveConn answers one client until it leaves. A reset connection is a client that left.
func serveConn(conn net.Conn, data *store) {
	defer conn.Close()
	reader, writer := bufio.NewReaderSize(conn, 16<<10), bufio.NewWriterSize(conn, 16<<10)
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			return
		}
		answer(writer, data, strings.TrimSuffix(line, "\n"))
		if reader.Buffered() > 0 {
			continue // More of a pipeline: one write answers it all.
		}
		if err := writer.Flush(); err != nil {
			return
		}
	}
}

func answer(w *bufio.Writer, data *store, request string) {
	verb, rest, _ := strings.Cut(request, " ")
	key, argument, _ := strings.Cut(rest, " ")
	switch verb {
	case "GET":
		value, found := data.get(key)
		answerValue(w, "VALUE ", value, found)
	case "PUT":
		// Cloned: what is stored must not keep the whole request line alive.
		data.put(strings.Clone(key), strings.Clone(argument))
		answerWritten(w, data)
	case "CAS":
		old, next, _ := strings.Cut(argument, " ")
		held, found, swapped := data.compareAndSwap(key, old, strings.Clone(next))
		if swapped {
			answerWritten(w, data)
		} else {
			answerValue(w, "CONFLICT ", held, found)
		}
	case "SCAN":
		data.scan(func(p pair) { fmt.Fprintf(w, "PAIR %s %s\n", p.key, p.value) })
		w.WriteString("END\n")
	case "STATS":
		w.WriteString("STATS ")
		printJSON(w, collectStats(data))
	default:
		fmt.Fprintf(w, "ERROR unknown request %q\n", verb)
	}
}

func answerWritten(w *bufio.Writer, data *store) {
	if err := data.commit(); err != nil {
		fmt.Fprintf(w, "ERROR written, but %v\n", err)
		return
	}
	w.WriteString("OK\n")
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
}

func collectStats(data *store) stats {
	cycles := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(cycles)
	return stats{
		Pid:        os.Getpid(),
		Keys:       data.size(),
		Goroutines: runtime.NumGoroutine(),
		GCCycles:   cycles[0].Value.Uint64(),
	}
}
