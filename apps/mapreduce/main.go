// Command mapreduce counts words with a coordinator and workers that talk over net/rpc, in the style of a teaching lab.
//
//	mapreduce generate   --bytes N --seed S > CORPUS
//	mapreduce coordinate --listen ADDR --corpus FILE [--maps M --reduces R --task-timeout 1s --output FILE]
//	mapreduce work       --coordinator ADDR[,ADDR…] [--pace 0s]
//	mapreduce count      --corpus FILE                           the same words, counted by a plain loop
//
// The coordinator keeps everything in memory: who has which task, and what came back. A worker that is lost costs its
// task's time-out, and a worker that loses its coordinator asks again. What is printed at the end is `words N` and
// `digest SHA256`, of the lines that --output holds.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

const usage = "usage: mapreduce generate|coordinate|work|count [flags]; mapreduce VERB --help lists the flags"

func main() {
	err := run(os.Args[1:], os.Stdout)
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "mapreduce:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	switch args[0] {
	case "generate":
		return runGenerate(args[1:], out)
	case "coordinate":
		return runCoordinate(args[1:], out)
	case "work":
		return runWork(args[1:])
	case "count":
		return runCount(args[1:], out)
	default:
		return errors.New(usage)
	}
}
