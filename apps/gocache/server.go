package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/patrickmn/go-cache"
)

// server answers from a cache whose pairs never expire.
//
//	GET key            VALUE value | NONE
//	PUT key value      OK
//	anything else      ERROR why
type server struct{ cache *cache.Cache }

func newServer() *server {
	return &server{cache.New(cache.NoExpiration, 0)}
}

func (s *server) fill(count, valueBytes int) {
	value := strings.Repeat("x", valueBytes)
	for number := range count {
		s.cache.SetDefault(fmt.Sprintf("%08d", number), strings.Clone(value))
	}
}

// saveEvery never returns. A snapshot that takes longer than the interval is followed by the next at once.
func (s *server) saveEvery(path string, interval time.Duration) {
	for {
		began := time.Now()
		if err := s.cache.SaveFile(path); err != nil {
			fmt.Fprintln(os.Stderr, "gocache: snapshot:", err)
		}
		time.Sleep(interval - time.Since(began))
	}
}

func (s *server) serve(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go s.serveConn(conn)
	}
}

// serveConn answers one client until it leaves.
func (s *server) serveConn(conn net.Conn) {
	defer conn.Close()
	reader, writer := bufio.NewReader(conn), bufio.NewWriter(conn)
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			return
		}
		writer.WriteString(s.answer(strings.TrimSuffix(line, "\n")))
		writer.WriteByte('\n')
		if reader.Buffered() > 0 {
			continue // More of a pipeline: one write answers it all.
		}
		if err := writer.Flush(); err != nil {
			return
		}
	}
}

func (s *server) answer(request string) string {
	verb, rest, _ := strings.Cut(request, " ")
	switch key, value, _ := strings.Cut(rest, " "); verb {
	case "GET":
		if found, ok := s.cache.Get(key); ok {
			return "VALUE " + found.(string)
		}
		return "NONE"
	case "PUT":
		// Cloned: what is stored must not keep the whole request line alive.
		s.cache.SetDefault(strings.Clone(key), strings.Clone(value))
		return "OK"
	default:
		return fmt.Sprintf("ERROR unknown request %q", verb)
	}
}
