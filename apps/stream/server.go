package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// The protocol: a client sends one line, and bytes of the seed's stream go one way.
//
//	DOWN seed bytes         the server sends the bytes, and closes once the client has closed its side
//	UP seed bytes           the client sends the bytes; answer OK, WRONG offset for a wrong byte there, or BAD why
//	DEAF token seed bytes   the server closes its side of the connection at once, and takes the bytes; the answer
//	                        is kept under the token
//	VERDICT token           the same answer, once that transfer has ended; NONE if there was none
//
// Clients half-close when they have nothing more to send; the server does not mind when.

func runServe(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("stream serve", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:7071", "address to listen on")
	if err := flags.Parse(args); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "listening %s\nready\n", listener.Addr())
	return newServer().serve(listener)
}

type server struct {
	mu       sync.Mutex
	verdicts map[string]chan string // By token; each holds one answer.
}

func newServer() *server { return &server{verdicts: make(map[string]chan string)} }

// serve answers connections until the listener is closed. A failed accept is waited out.
func (s *server) serve(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			fmt.Fprintln(os.Stderr, "stream: accept:", err)
			time.Sleep(5 * time.Millisecond)
		default:
			go s.serveConn(conn.(*net.TCPConn))
		}
	}
}

// serveConn does what the client asks for. A broken connection is the client's to notice.
func (s *server) serveConn(conn *net.TCPConn) {
	defer conn.Close()
	reader := bufio.NewReader(conn)
	line, err := reader.ReadString('\n')
	if err != nil {
		return
	}
	var seed, total uint64
	var token string
	if _, err := fmt.Sscanf(line, "DOWN %d %d", &seed, &total); err == nil {
		if sendStream(conn, seed, total, pace{}) == nil && conn.CloseWrite() == nil {
			drain(reader)
		}
	} else if _, err := fmt.Sscanf(line, "UP %d %d", &seed, &total); err == nil {
		fmt.Fprintln(conn, judge(checkStream(reader, seed, total, false, pace{})))
		drain(reader)
	} else if _, err := fmt.Sscanf(line, "DEAF %s %d %d", &token, &seed, &total); err == nil {
		s.takeDeaf(conn, reader, token, seed, total)
	} else if _, err := fmt.Sscanf(line, "VERDICT %s", &token); err == nil {
		fmt.Fprintln(conn, s.verdict(token))
	} else {
		fmt.Fprintf(conn, "BAD unknown request %.80q\n", line)
	}
}

func judge(err error) string {
	var wrong *wrongByte
	switch {
	case err == nil:
		return "OK"
	case errors.As(err, &wrong):
		return fmt.Sprintf("WRONG %d", wrong.offset)
	default:
		return "BAD " + err.Error()
	}
}

func (s *server) takeDeaf(conn *net.TCPConn, reader io.Reader, token string, seed, total uint64) {
	verdict := make(chan string, 1)
	s.mu.Lock()
	s.verdicts[token] = verdict
	s.mu.Unlock()
	if err := conn.CloseWrite(); err != nil {
		verdict <- judge(err)
		return
	}
	verdict <- judge(checkStream(reader, seed, total, true, pace{}))
	drain(reader)
}

// drain waits for the client's end of the stream, and reads what it still sends after a wrong byte: to close at once
// would reset the connection, and the client would not learn the verdict.
func drain(reader io.Reader) { io.Copy(io.Discard, reader) }

// verdict waits for the transfer's end, and forgets it.
func (s *server) verdict(token string) string {
	s.mu.Lock()
	verdict := s.verdicts[token]
	delete(s.verdicts, token)
	s.mu.Unlock()
	if verdict == nil {
		return "NONE"
	}
	return <-verdict
}
