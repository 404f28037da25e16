// Command raftmapreduce is the coordinator of apps/mapreduce, made fault-tolerant the usual way: ported to etcd's Raft
// library, with a write-ahead log that is synced before a result is taken, on three nodes. The workers are those of
// apps/mapreduce as they are, given the addresses of all nodes.
//
//	raftmapreduce --id N --peers 1=ADDR,2=ADDR,3=ADDR --data DIR --listen ADDR --corpus FILE
//	              [--election 1s --maps M --reduces R --task-timeout 1s --output FILE]
//
// Every node needs the corpus. What is printed is what apps/mapreduce prints, by each node.
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
	"syscall"
	"time"

	"checksync/apps/raftnode"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			os.Exit(2)
		}
		fmt.Fprintln(os.Stderr, "raftmapreduce:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("raftmapreduce", flag.ContinueOnError)
	id := flags.Uint64("id", 0, "this node's number")
	peerList := flags.String("peers", "", "all nodes' addresses for one another: 1=ADDR,2=ADDR,3=ADDR")
	dir := flags.String("data", "", "directory of the log")
	election := flags.Duration("election", time.Second, "how long a follower waits for its leader")
	listen := flags.String("listen", "127.0.0.1:7070", "address to listen on for workers, while this node leads")
	corpus := flags.String("corpus", "", "file with the text")
	maps := flags.Int("maps", 64, "number of map tasks")
	reduces := flags.Int("reduces", 8, "number of reduce tasks")
	timeout := flags.Duration("task-timeout", time.Second, "how long a worker may have a task")
	output := flags.String("output", "", "file for the counts")
	linger := flags.Duration("linger", 2*time.Second, "how long workers are told that there is nothing left")
	if err := flags.Parse(args); err != nil {
		return err
	}
	peers, err := raftnode.ParsePeers(*peerList)
	if err != nil {
		return err
	}
	if peers[*id] == "" || *dir == "" || *election < electionTicks*time.Millisecond {
		return errors.New("--id must be among --peers, --data must be given, and --election be at least 10 ms")
	}
	text, err := os.ReadFile(*corpus)
	if err != nil {
		return err
	}
	peerListener, err := net.Listen("tcp", peers[*id])
	if err != nil {
		return err
	}
	defer peerListener.Close()
	c := newCoordinator(*listen, text, *maps, *reduces, *timeout, out)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	n, err := newNode(ctx, nodeConfig{id: *id, dir: *dir, peers: peers, election: *election}, c)
	if err != nil {
		return err
	}
	c.node = n
	go raftnode.Receive(ctx, peerListener, n.inbound)
	go func() {
		defer stop()
		select {
		case <-c.finished:
			if err := finish(c.counts(), *output, out); err != nil {
				fmt.Fprintln(os.Stderr, "raftmapreduce:", err)
			}
			time.Sleep(*linger)
		case <-ctx.Done():
		}
	}()
	defer c.hangUp()
	return n.run(ctx)
}
