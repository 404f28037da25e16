// Command load drives a key/value server with concurrent closed-loop clients whose connections stay open, and
// measures what they see.
//
//	load --target redis|kv --address H:P [--clients N --pipeline D --seconds S --ratio 90/10[/CAS]]
//	     [--keys N --value-bytes 72 --fill] [--history FILE] [--reconnect] [--timeline-ms MS] [--report json|text]
//
// The target kv is the protocol of apps/kv, which apps/raftkv speaks too. A history is what apps/judge reads; with
// one, every key is put before the clients begin and read after they have ended. "ready" on the standard error
// tells that a first answer has come. SIGINT and SIGTERM end the load early, with its report.
//
// The exit code is 0 if the load ran to its end without a broken connection, or with any number of them if
// --reconnect was given, and no value was corrupt; 1 otherwise, after the report.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	err := run(os.Args[1:], os.Stdout)
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

// config is what the flags say.
type config struct {
	address    string
	target     target
	clients    int
	pipeline   int
	seconds    float64
	mix        mix
	keys       int
	keyBytes   int
	valueBytes int
	fill       bool
	history    string
	reconnect  bool
	timeout    time.Duration
	bucket     time.Duration
}

func run(args []string, out io.Writer) error {
	c := config{}
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	targetName := flags.String("target", "kv", "what the server speaks: redis or kv")
	ratio := flags.String("ratio", "90/10", "shares of gets and puts, and of compare-and-swaps if there are three")
	timelineMs := flags.Int("timeline-ms", 0, "count the answers in intervals of this length")
	form := flags.String("report", "json", "form of the report: json or text")
	flags.StringVar(&c.address, "address", "127.0.0.1:7070", "address of the server")
	flags.IntVar(&c.clients, "clients", 1, "clients, each with one connection")
	flags.IntVar(&c.pipeline, "pipeline", 1, "requests that a client sends at a time")
	flags.Float64Var(&c.seconds, "seconds", 10, "how long; 0 for until a signal comes")
	flags.IntVar(&c.keys, "keys", 1000, "number of keys")
	flags.IntVar(&c.keyBytes, "key-bytes", 8, "length of a key")
	flags.IntVar(&c.valueBytes, "value-bytes", 72, "length of a value")
	flags.BoolVar(&c.fill, "fill", false, "put every key before the clients begin")
	flags.StringVar(&c.history, "history", "", "file to record every operation in")
	flags.BoolVar(&c.reconnect, "reconnect", false, "make a broken connection anew instead of ending the client")
	flags.DurationVar(&c.timeout, "timeout", 10*time.Second, "how long to wait for an answer before the connection is called broken")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var err error
	if c.mix, err = parseMix(*ratio); err != nil {
		return err
	}
	if c.target, err = targetByName(*targetName); err != nil {
		return err
	}
	c.bucket = time.Duration(*timelineMs) * time.Millisecond
	if err := c.validate(); err != nil {
		return err
	}
	if *form != "json" && *form != "text" {
		return fmt.Errorf("--report is %q, not json or text", *form)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	r, err := c.run(ctx)
	if err != nil {
		return err
	}
	if *form == "json" {
		err = json.NewEncoder(out).Encode(r)
	} else {
		err = r.print(out)
	}
	return errors.Join(err, r.verdict(c.reconnect))
}

func (c *config) validate() error {
	switch {
	case c.clients < 1 || c.pipeline < 1 || c.keys < 1:
		return errors.New("--clients, --pipeline and --keys must be at least 1")
	case c.valueBytes < valueBytesMin:
		return fmt.Errorf("--value-bytes is %d, but a value has at least %d", c.valueBytes, valueBytesMin)
	case c.seconds < 0 || c.bucket < 0:
		return errors.New("--seconds and --timeline-ms must not be negative")
	}
	return nil
}

// mix is in parts of the sum.
type mix struct{ gets, puts, swaps int }

func parseMix(text string) (mix, error) {
	parts := strings.Split(text, "/")
	shares := make([]int, 3)
	sum := 0
	for i, part := range parts {
		share, err := strconv.Atoi(part)
		if err != nil || share < 0 || i == len(shares) {
			return mix{}, fmt.Errorf("--ratio is %q, not GETS/PUTS or GETS/PUTS/SWAPS", text)
		}
		shares[i] = share
		sum += share
	}
	if len(parts) < 2 || sum == 0 {
		return mix{}, fmt.Errorf("--ratio is %q, not GETS/PUTS or GETS/PUTS/SWAPS", text)
	}
	return mix{shares[0], shares[1], shares[2]}, nil
}
