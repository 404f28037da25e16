package checksync

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// Answers are short.
const bodyBytesMax = 1 << 20

var errMalformed = errors.New("this is no answer of a manager")

// connection is one to the manager: a request, an answer, and the next. It does without net/http, which would be most
// of a small program, and of what it touches in memory between two checkpoints.
type connection struct {
	stream  net.Conn
	reader  *bufio.Reader
	request []byte
	// The manager says nothing more here.
	last bool
}

func newConnection(stream net.Conn) *connection {
	const buffer = 1 << 10
	return &connection{stream: stream, reader: bufio.NewReaderSize(stream, buffer)}
}

func (c *connection) close() {
	// What was to be said is said, and nobody waits for the end.
	_ = c.stream.Close()
}

func (c *connection) ask(ctx context.Context, method, target string) (int, []byte, error) {
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, func() { _ = c.stream.SetDeadline(time.Unix(1, 0)) })
		defer stop()
	}
	// In one write, so that it is never half a request that waits.
	c.request = fmt.Appendf(c.request[:0], "%s %s HTTP/1.1\r\nhost: checksync\r\ncontent-length: 0\r\n\r\n", method, target)
	if _, err := c.stream.Write(c.request); err != nil {
		return 0, nil, err
	}
	return c.read()
}

func (c *connection) read() (int, []byte, error) {
	first, err := c.line()
	if err != nil {
		return 0, nil, err
	}
	words := strings.SplitN(first, " ", 3)
	if len(words) < 2 || !strings.HasPrefix(words[0], "HTTP/1.") {
		return 0, nil, fmt.Errorf("%w: %q", errMalformed, first)
	}
	status, err := strconv.Atoi(words[1])
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %q", errMalformed, first)
	}
	length, err := c.headers()
	if err != nil {
		return 0, nil, err
	}
	body := make([]byte, length)
	_, err = io.ReadFull(c.reader, body)
	return status, body, err
}

// headers returns the length of the body.
func (c *connection) headers() (int, error) {
	length := 0
	for {
		line, err := c.line()
		if err != nil || line == "" {
			return length, err
		}
		name, value, found := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch {
		case !found:
			return 0, fmt.Errorf("%w: %q", errMalformed, line)
		case strings.EqualFold(name, "content-length"):
			if length, err = strconv.Atoi(value); err != nil || length < 0 || length > bodyBytesMax {
				return 0, fmt.Errorf("%w: %q", errMalformed, line)
			}
		case strings.EqualFold(name, "connection"):
			c.last = strings.EqualFold(value, "close")
		}
	}
}

func (c *connection) line() (string, error) {
	line, err := c.reader.ReadSlice('\n')
	if err == nil {
		return string(bytes.TrimRight(line, "\r\n")), nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return "", err
}
