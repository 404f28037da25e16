// Command judge decides whether histories of a key/value server are linearizable, and which acknowledged
// writes they show to be lost.
//
//	judge [--timeout 60s] [--pictures DIR] HISTORY...
//
// The format of a history is documented in the package history; apps/load writes it. Several files are judged
// as one: their times must be of one clock. The verdict is JSON on the standard output; the exit code is 0 if
// the histories are linearizable, 1 if they are not, 2 if that could not be decided.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"checksync/apps/judge/check"
	"checksync/apps/judge/history"
)

const (
	exitLinearizable = 0
	exitViolated     = 1
	exitUndecided    = 2
)

func main() {
	verdict, err := run(os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "judge:", err)
		os.Exit(exitUndecided)
	}
	switch verdict.Linearizable {
	case "yes":
		os.Exit(exitLinearizable)
	case "no":
		os.Exit(exitViolated)
	default:
		os.Exit(exitUndecided)
	}
}

func run(args []string, out io.Writer) (check.Verdict, error) {
	flags := flag.NewFlagSet("judge", flag.ContinueOnError)
	timeout := flags.Duration("timeout", time.Minute, "how long to think about one piece of a key's history")
	pictures := flags.String("pictures", "", "directory for pages that show the first violations")
	count := flags.Int("picture-count", 5, "how many of them")
	if err := flags.Parse(args); err != nil {
		return check.Verdict{}, err
	}
	if flags.NArg() == 0 {
		return check.Verdict{}, errors.New("usage: judge [--timeout 60s] [--pictures DIR] HISTORY...")
	}
	if *pictures != "" {
		if err := os.MkdirAll(*pictures, 0o755); err != nil {
			return check.Verdict{}, err
		}
	}
	operations, err := readAll(flags.Args())
	if err != nil {
		return check.Verdict{}, err
	}
	verdict := check.Judge(operations, check.Options{Timeout: *timeout, PictureDir: *pictures, Pictures: *count})
	return verdict, json.NewEncoder(out).Encode(verdict)
}

// readAll reads several files as one history; clients of different files are different clients.
func readAll(paths []string) ([]history.Operation, error) {
	var all []history.Operation
	firstClient := 0
	for _, path := range paths {
		operations, err := readFile(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		nextFirst := firstClient
		for _, o := range operations {
			o.Client += firstClient
			nextFirst = max(nextFirst, o.Client+1)
			all = append(all, o)
		}
		firstClient = nextFirst
	}
	return all, nil
}

func readFile(path string) ([]history.Operation, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return history.Read(file)
}
