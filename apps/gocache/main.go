// Command gocache puts github.com/patrickmn/go-cache behind a small server, with the cache's own snapshots.
//
//	gocache --listen ADDR [--preload N --value-bytes 72] [--snapshot FILE --every 50ms]
//
// It speaks a part of the protocol of apps/kv (GET, PUT), so apps/load can drive it. With --snapshot the cache saves
// itself to the file again and again, as its users make it last: SaveFile, which holds the cache's lock meanwhile.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			os.Exit(2)
		}
		fmt.Fprintln(os.Stderr, "gocache:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("gocache", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:7070", "address to listen on")
	preload := flags.Int("preload", 0, "number of pairs to start with")
	valueBytes := flags.Int("value-bytes", 72, "length of a preloaded value")
	snapshot := flags.String("snapshot", "", "file that the cache is saved to")
	every := flags.Duration("every", time.Second, "from the beginning of one snapshot to that of the next")
	if err := flags.Parse(args); err != nil {
		return err
	}
	s := newServer()
	s.fill(*preload, *valueBytes)
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	if *snapshot != "" {
		go s.saveEvery(*snapshot, *every)
	}
	fmt.Fprintf(out, "listening %s\nready\n", listener.Addr())
	return s.serve(listener)
}
