package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"checksync/apps/raftnode"
)

const entriesKept = 10_000

// common are the flags that a node has in both verbs.
type common struct {
	localGets       bool
	election        time.Duration
	snapshotEntries uint64
	preload         int
	keyBytes        int
	valueBytes      int
}

func (c *common) register(flags *flag.FlagSet) {
	flags.BoolVar(&c.localGets, "local-gets", false, "answer gets from the node's own memory: fast, and may be stale")
	flags.DurationVar(&c.election, "election", time.Second, "how long a follower waits for its leader")
	flags.Uint64Var(&c.snapshotEntries, "snapshot-entries", 200_000, "entries after which the log is replaced by a snapshot")
	flags.IntVar(&c.preload, "preload", 0, "number of pairs to start with, the same on all nodes")
	flags.IntVar(&c.keyBytes, "key-bytes", 8, "length of a preloaded key")
	flags.IntVar(&c.valueBytes, "value-bytes", 64, "length of a preloaded value")
}

func (c *common) validate() error {
	switch {
	case c.valueBytes < valueBytesMin:
		return fmt.Errorf("--value-bytes is %d, but a value has at least %d", c.valueBytes, valueBytesMin)
	case c.election < electionTicks*time.Millisecond:
		return fmt.Errorf("--election is %s, not at least %d ms", c.election, electionTicks)
	case c.snapshotEntries == 0:
		return errors.New("--snapshot-entries must be at least 1")
	}
	return nil
}

// arguments gives the flags on to a child.
func (c *common) arguments() []string {
	return []string{
		fmt.Sprintf("--local-gets=%t", c.localGets), "--election", c.election.String(),
		"--snapshot-entries", strconv.FormatUint(c.snapshotEntries, 10), "--preload", strconv.Itoa(c.preload),
		"--key-bytes", strconv.Itoa(c.keyBytes), "--value-bytes", strconv.Itoa(c.valueBytes),
	}
}

func runServe(args []string, out io.Writer) error {
	var c common
	flags := flag.NewFlagSet("raftkv serve", flag.ContinueOnError)
	id := flags.Uint64("id", 0, "this node's number")
	peerList := flags.String("peers", "", "all nodes' addresses for one another: 1=ADDR,2=ADDR,3=ADDR")
	peerFd := flags.Int("peer-fd", -1, "descriptor that listens on this node's address among the peers already")
	listen := flags.String("listen", "127.0.0.1:7070", "address to listen on for clients")
	dir := flags.String("data", "", "directory of the log and the snapshot")
	c.register(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	peers, err := raftnode.ParsePeers(*peerList)
	if err != nil {
		return err
	}
	if err := c.validate(); err != nil {
		return err
	}
	if peers[*id] == "" || *dir == "" {
		return errors.New("--id must be among --peers, and --data must be given")
	}
	peerListener, err := listenForPeers(peers[*id], *peerFd)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	data := newStore(c.preload)
	fill(data, c.preload, c.keyBytes, c.valueBytes)
	n, err := newNode(ctx, nodeConfig{
		id: *id, dir: *dir, peers: peers, localGets: c.localGets, election: c.election,
		snapshotEntries: c.snapshotEntries, entriesKept: entriesKept,
	}, data)
	if err != nil {
		return err
	}
	return serveUntilDone(ctx, n, peerListener, *listen, out)
}

// serveUntilDone serves clients and peers until the context ends or the log fails.
func serveUntilDone(ctx context.Context, n *node, peerListener net.Listener, listen string, out io.Writer) error {
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "listening", listener.Addr())
	context.AfterFunc(ctx, func() { listener.Close(); peerListener.Close() })
	go raftnode.Receive(ctx, peerListener, n.inbound)
	go serve(listener, n)
	go func() {
		for ctx.Err() == nil && !n.readBarrier() {
		}
		fmt.Fprintln(out, "ready")
	}()
	return n.run(ctx)
}

func listenForPeers(addr string, fd int) (net.Listener, error) {
	if fd < 0 {
		return net.Listen("tcp", addr)
	}
	file := os.NewFile(uintptr(fd), "peers")
	defer file.Close()
	return net.FileListener(file)
}
