// Command kv is the in-memory key/value server of the thesis, with its load generator and its verifier.
//
//	kv serve  --listen ADDR [--preload N --key-bytes 8 --value-bytes 64] [--threads N] [--sync]
//	kv load   --addr ADDR --clients N --read-percent 90 --keys K (--seconds S | --ops N) [--record FILE]
//	kv verify --addr ADDR --record FILE [--not-after WALL_NS]
//
// The server is an ordinary Go program that knows nothing of checkpoints: but for --sync, with which it answers a write
// only once the manager says that it is committed, as the thesis's changed server did.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

const usage = "usage: kv serve|load|verify [flags]; kv VERB --help lists the flags"

// errInvalid is the answer of a verification that found a lost or a corrupt write: exit code 1, after the JSON.
var errInvalid = errors.New("what the server holds is not a valid prefix of what was acknowledged")

func main() {
	err := run(os.Args[1:], os.Stdout)
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "kv:", err)
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
	case "load":
		return runLoad(args[1:], out)
	case "verify":
		return runVerify(args[1:], out)
	default:
		return errors.New(usage)
	}
}

func printJSON(out io.Writer, report any) error {
	return json.NewEncoder(out).Encode(report)
}
