// Command structkv is the server of `kv` on replicated structures: the same protocol, but for compare-and-swap.
//
//	checksync run --replicate structures --app kv --standby HOST:PORT … -- structkv --listen ADDR [--preload N] [--whole]
//
// A PUT is answered when the standby has it. With --whole each of them encodes all pairs and stores them as one value,
// as the thesis does; without it the change alone is sent.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"checksync"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "structkv:", err)
		os.Exit(1)
	}
}

func run() error {
	listen := flag.String("listen", "127.0.0.1:7070", "address to listen on")
	preload := flag.Int("preload", 0, "number of pairs to start with, if there are none")
	valueBytes := flag.Int("value-bytes", 64, "length of a preloaded value")
	whole := flag.Bool("whole", false, "store all pairs with each PUT")
	flag.Parse()
	structures, err := checksync.OpenStructures()
	if err != nil {
		return err
	}
	data, err := open(structures, *whole)
	if err != nil {
		return err
	}
	if err := data.fill(*preload, *valueBytes); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	fmt.Printf("listening %s\nready term %d\n", listener.Addr(), structures.Term())
	return serve(listener, data)
}

// pairs is what the server has, in either way. Keys that are preloaded are as those of `kv`.
type pairs interface {
	get(key string) (value []byte, found bool, err error)
	put(key string, value []byte) error
	fill(count, valueBytes int) error
}

func open(structures *checksync.Structures, whole bool) (pairs, error) {
	if whole {
		return openWhole(structures)
	}
	m, err := structures.Map("pairs")
	return changes{m}, err
}

// serve answers connections until the listener is closed. A failed accept is waited out.
func serve(listener net.Listener, data pairs) error {
	for {
		conn, err := listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			fmt.Fprintln(os.Stderr, "structkv: accept:", err)
			time.Sleep(5 * time.Millisecond)
		default:
			go serveConn(conn, data)
		}
	}
}

// serveConn answers one client until it leaves.
func serveConn(conn net.Conn, data pairs) {
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

func answer(w *bufio.Writer, data pairs, request string) {
	verb, rest, _ := strings.Cut(request, " ")
	key, argument, _ := strings.Cut(rest, " ")
	switch verb {
	case "GET":
		value, found, err := data.get(key)
		switch {
		case err != nil:
			fmt.Fprintf(w, "ERROR %s\n", err)
		case found:
			w.WriteString("VALUE ")
			w.Write(value)
			w.WriteByte('\n')
		default:
			w.WriteString("NONE\n")
		}
	case "PUT":
		// Cloned: what is stored must not keep the whole request line alive.
		if err := data.put(strings.Clone(key), []byte(argument)); err != nil {
			fmt.Fprintf(w, "ERROR %s\n", err)
			return
		}
		w.WriteString("OK\n")
	default:
		fmt.Fprintf(w, "ERROR unknown request %q\n", verb)
	}
}
