package main

import (
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"time"
)

func runVerify(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("kv verify", flag.ContinueOnError)
	addr := flags.String("addr", "127.0.0.1:7070", "address of the server")
	record := flags.String("record", "", "file that kv load --record wrote")
	limit := flags.Int64("not-after", math.MaxInt64,
		"writes acknowledged before this wall clock time in ns must be there; without it all of them")
	timeout := flags.Duration("timeout", time.Second, "how long to wait for an answer")
	if err := flags.Parse(args); err != nil {
		return err
	}
	file, err := os.Open(*record)
	if err != nil {
		return err
	}
	defer file.Close()
	h := newHistory(*limit)
	if err := readRecord(file, h); err != nil {
		return err
	}
	if err := readBack(newClient(*addr, *timeout), h); err != nil {
		return err
	}
	judged := h.finish()
	if err := printJSON(out, judged); err != nil {
		return err
	}
	if !judged.valid() {
		return errInvalid
	}
	return nil
}

// readBack reads every key that was ever written, as one last round.
func readBack(c *client, h *history) error {
	defer c.close()
	for number := range h.clients {
		h.beginAudit(number)
	}
	deadline := time.Now().Add(reconnectLimit)
	for key, k := range h.keys {
		sequence, err := readUntilAnswered(c, key, deadline)
		if err != nil {
			return err
		}
		h.addFound(k.writes[0].client, key, sequence)
		h.verdict.KeysChecked++
	}
	return nil
}

// readUntilAnswered reads again when a connection breaks: a read may be repeated.
func readUntilAnswered(c *client, key string, deadline time.Time) (int64, error) {
	for {
		if !c.connected() {
			if err := c.connect(deadline); err != nil {
				return 0, err
			}
		}
		sequence, err := readSequence(c, key)
		if err == nil {
			return sequence, nil
		}
		if time.Now().After(deadline) {
			return 0, errors.Join(errors.New("no answer to a read of key "+key), err)
		}
	}
}
