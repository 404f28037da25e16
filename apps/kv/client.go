package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

const (
	backoffMin = time.Millisecond
	backoffMax = 20 * time.Millisecond
)

// client is one persistent connection that is made anew when it breaks. A request that fails is never sent
// again by itself: whether it took effect is not known, and only the caller can say what to do about it.
type client struct {
	addr    string
	timeout time.Duration
	conn    net.Conn
	reader  *bufio.Reader
}

func newClient(addr string, timeout time.Duration) *client {
	return &client{addr: addr, timeout: timeout}
}

// connect tries until the server answers or the deadline has passed.
func (c *client) connect(deadline time.Time) error {
	for backoff := backoffMin; ; backoff = min(2*backoff, backoffMax) {
		conn, err := net.DialTimeout("tcp", c.addr, c.timeout)
		if err == nil {
			c.conn, c.reader = conn, bufio.NewReaderSize(conn, 16<<10)
			return nil
		}
		if time.Now().Add(backoff).After(deadline) {
			return fmt.Errorf("no connection to %s: %w", c.addr, err)
		}
		time.Sleep(backoff)
	}
}

func (c *client) connected() bool { return c.conn != nil }

func (c *client) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn, c.reader = nil, nil
	}
}

// roundTrip sends one request and returns its answer. On failure the connection is gone.
func (c *client) roundTrip(request string) (string, error) {
	answer, err := c.exchange(request)
	if err != nil {
		c.close()
	}
	return answer, err
}

func (c *client) exchange(request string) (string, error) {
	if c.conn == nil {
		return "", net.ErrClosed
	}
	if err := c.conn.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return "", err
	}
	if _, err := c.conn.Write([]byte(request + "\n")); err != nil {
		return "", err
	}
	line, err := c.reader.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

// get returns the value, or false where the key holds none.
func (c *client) get(key string) (string, bool, error) {
	answer, err := c.roundTrip("GET " + key)
	if err != nil {
		return "", false, err
	}
	if answer == "NONE" {
		return "", false, nil
	}
	value, ok := strings.CutPrefix(answer, "VALUE ")
	if !ok {
		c.close()
		return "", false, errors.New("unexpected answer to GET: " + answer)
	}
	return value, true, nil
}

func (c *client) put(key, value string) error {
	answer, err := c.roundTrip("PUT " + key + " " + value)
	if err == nil && answer != "OK" {
		c.close()
		err = errors.New("unexpected answer to PUT: " + answer)
	}
	return err
}
