// Command matrix raises a large matrix to a power by multiplying again and again, on all cores.
//
//	matrix [--size 512 --power 100 --seed 1 --workers N]
//
// It prints `ready`, `step N of P` after each multiplication, and at the end `digest SHA256` of the result. Numbers are
// unsigned and wrap around, so the result does not depend on who computed which row when.
package main

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			os.Exit(2)
		}
		fmt.Fprintln(os.Stderr, "matrix:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("matrix", flag.ContinueOnError)
	size := flags.Int("size", 512, "rows and columns")
	power := flags.Int("power", 100, "how often the matrix is multiplied by itself")
	seed := flags.Uint64("seed", 1, "the same seed makes the same matrix")
	workers := flags.Int("workers", runtime.NumCPU(), "goroutines that multiply")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *size < 1 || *power < 1 || *workers < 1 {
		return errors.New("--size, --power and --workers must be at least 1")
	}
	fmt.Fprintln(out, "ready")
	result := raise(random(*size, *seed), *power, *workers, func(step int) {
		fmt.Fprintf(out, "step %d of %d\n", step, *power)
	})
	digest := sha256.New()
	if err := binary.Write(digest, binary.LittleEndian, result.cells); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "digest %x\n", digest.Sum(nil))
	return err
}
