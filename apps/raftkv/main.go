// Command raftkv is the key/value server of apps/kv, made fault-tolerant the usual way: ported to etcd's Raft
// library, with a write-ahead log that is synced before an answer goes out, on three nodes.
//
//	raftkv cluster [--listen ADDR,ADDR,ADDR --data DIR]           three nodes on this host, as child processes
//	raftkv serve   --id N --peers 1=ADDR,2=ADDR,3=ADDR --data DIR [--listen ADDR]      one node
//
// both with [--local-gets --election 1s --snapshot-entries N --preload N --key-bytes 8 --value-bytes 64].
//
// Clients speak the protocol of apps/kv to any node. Gets are linearizable (ReadIndex) unless --local-gets.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

const usage = "usage: raftkv serve|cluster [flags]; raftkv VERB --help lists the flags"

func main() {
	err := run(os.Args[1:], os.Stdout)
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "raftkv:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	switch args[0] {
	case "serve":
		return runServe(args[1:], out)
	case "cluster":
		return runCluster(args[1:], out)
	default:
		return errors.New(usage)
	}
}

func printJSON(out io.Writer, report any) error {
	return json.NewEncoder(out).Encode(report)
}
