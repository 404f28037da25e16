// Command stream moves seeded bytes over TCP connections, and checks that each arrives once and in its place.
//
//	stream serve --listen ADDR
//	stream run   --address ADDR --connections N --bytes N [--modes down,up,half-down,half-up,idle,zero-window]
//	             [--seed N --pause 2s --rate BYTES --timeout 30s]
//
// The server prints "listening ADDR" and "ready"; the client prints "ready" on the standard error when all
// connections are open, and its report as JSON at the end. The exit code is 0 if every byte was right.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

const usage = "usage: stream serve|run [flags]; stream VERB --help lists the flags"

func main() {
	err := run(os.Args[1:], os.Stdout)
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "stream:", err)
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
	case "run":
		return runClient(args[1:], out, func() { fmt.Fprintln(os.Stderr, "ready") })
	default:
		return errors.New(usage)
	}
}
