package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	clusterSize = 3
	startLimit  = 60 * time.Second
	stopLimit   = 5 * time.Second
)

// member is one node's process.
type member struct {
	id     int
	cmd    *exec.Cmd
	output *bufio.Scanner
	addr   string
	ready  chan error
	ended  chan struct{}
}

// announce prints a line; members do so at the same time.
type announce func(format string, arguments ...any)

// runCluster starts three nodes and waits for a signal:
//
//	node N pid PID listening ADDR      for each
//	listening ADDR                     the leader's
//	ready
//
// A node that dies is reported and not started again. None outlives this process.
func runCluster(args []string, out io.Writer) error {
	var c common
	flags := flag.NewFlagSet("raftkv cluster", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:0,127.0.0.1:0,127.0.0.1:0", "addresses to listen on for clients")
	dir := flags.String("data", "", "directory of the nodes' data; without it a temporary one")
	c.register(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := c.validate(); err != nil {
		return err
	}
	addrs := strings.Split(*listen, ",")
	if len(addrs) != clusterSize {
		return fmt.Errorf("--listen has %d addresses, not %d", len(addrs), clusterSize)
	}
	if *dir == "" {
		temporary, err := os.MkdirTemp("", "raftkv-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(temporary)
		*dir = temporary
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// The kernel ends the children with the thread that started them: it has to live as long as we do.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var printing sync.Mutex
	say := func(format string, arguments ...any) {
		printing.Lock()
		defer printing.Unlock()
		fmt.Fprintf(out, format, arguments...)
	}
	members, err := startMembers(addrs, *dir, c.arguments(), say)
	defer stopMembers(members)
	if err != nil {
		return err
	}
	leader, err := awaitReady(ctx, members)
	if err != nil {
		return err
	}
	say("listening %s\nready\n", leader)
	<-ctx.Done()
	return nil
}

// startMembers binds all peers' ports first, so that each node can be told of the others.
func startMembers(addrs []string, dir string, arguments []string, say announce) ([]*member, error) {
	var listeners []*os.File
	defer func() {
		for _, file := range listeners {
			file.Close()
		}
	}()
	var peers []string
	for i := range addrs {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		peers = append(peers, fmt.Sprintf("%d=%s", i+1, listener.Addr()))
		file, err := listener.(*net.TCPListener).File()
		listener.Close() // The file is a duplicate.
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, file)
	}
	var members []*member
	for i, addr := range addrs {
		m, err := startMember(i+1, listeners[i], append([]string{
			"serve", "--id", strconv.Itoa(i + 1), "--peers", strings.Join(peers, ","), "--peer-fd", "3",
			"--listen", addr, "--data", filepath.Join(dir, fmt.Sprintf("node-%d", i+1)),
		}, arguments...), say)
		if err != nil {
			return members, err
		}
		members = append(members, m)
	}
	return members, nil
}

func startMember(id int, peerListener *os.File, arguments []string, say announce) (*member, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	m := &member{id: id, cmd: exec.Command(self, arguments...), ready: make(chan error, 1), ended: make(chan struct{})}
	m.cmd.ExtraFiles = []*os.File{peerListener}
	m.cmd.Stderr = os.Stderr
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	output, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	m.output = bufio.NewScanner(output)
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	go m.follow(say)
	return m, nil
}

// awaitReady answers the leader's address once all nodes serve.
func awaitReady(ctx context.Context, members []*member) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for _, m := range members {
		select {
		case err := <-m.ready:
			if err != nil {
				return "", err
			}
		case <-ctx.Done():
			return "", errors.New("not all nodes became ready")
		}
	}
	return findLeader(ctx, members)
}

// follow reads what the node prints, to its end.
func (m *member) follow(say announce) {
	defer close(m.ended)
	isReady := false
	for m.output.Scan() {
		if addr, found := strings.CutPrefix(m.output.Text(), "listening "); found {
			m.addr = addr
			say("node %d pid %d listening %s\n", m.id, m.cmd.Process.Pid, addr)
		}
		if m.output.Text() == "ready" {
			isReady = true
			m.ready <- nil
		}
	}
	m.cmd.Wait() // The state tells more than the error.
	say("node %d ended: %s\n", m.id, m.cmd.ProcessState)
	if !isReady {
		m.ready <- fmt.Errorf("node %d ended before it was ready: %s", m.id, m.cmd.ProcessState)
	}
}

func findLeader(ctx context.Context, members []*member) (string, error) {
	for ctx.Err() == nil {
		for _, m := range members {
			if s, err := askStats(m.addr); err == nil && s.Leader == uint64(m.id) {
				return m.addr, nil
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	return "", errors.New("no node leads")
}

func askStats(addr string) (stats, error) {
	var answer stats
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return answer, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(conn, "STATS\n"); err != nil {
		return answer, err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return answer, err
	}
	return answer, json.Unmarshal([]byte(strings.TrimPrefix(line, "STATS ")), &answer)
}

// stopMembers asks all nodes to end, and after a while makes them.
func stopMembers(members []*member) {
	for _, m := range members {
		m.cmd.Process.Signal(syscall.SIGTERM) // One that is gone already is what we want.
	}
	deadline := time.After(stopLimit)
	for _, m := range members {
		select {
		case <-m.ended:
		case <-deadline:
			m.cmd.Process.Kill()
			<-m.ended
		}
	}
}
