// Command example counts, and has every count committed before it tells it: run it with `checksync run`, kill the
// manager, and it goes on where it was on the other host.
package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"checksync"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Println("refused:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	told := make(chan struct{}, 1)
	promoted := func(now checksync.Standing) {
		fmt.Printf("promoted %s %d %s\n", now.Host, now.Term, now.Restored)
		select {
		case told <- struct{}{}:
		default:
		}
	}
	if err := checksync.OnPromote(ctx, promoted); err != nil {
		return err
	}
	var count atomic.Uint64
	patient := checksync.Manager{Socket: os.Getenv("CHECKSYNC_SOCKET"), Patience: 1 << 35}
	first, err := patient.Sync(ctx)
	if err != nil {
		return err
	}
	fmt.Println("synced")
	// Several at a time: what one waits for, the others share.
	const workers = 4
	failures := make([]error, workers)
	var working sync.WaitGroup
	for worker := range failures {
		working.Go(func() { failures[worker] = countUntilRefused(ctx, &count) })
	}
	working.Wait()
	now, err := checksync.Role(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("counted at %s in term %d\n", now.Host, now.Term)
	if now.Term > first.Term {
		<-told
	}
	return failures[0]
}

func countUntilRefused(ctx context.Context, count *atomic.Uint64) error {
	last := checksync.Checkpoint{}
	for {
		count.Add(1)
		now, err := checksync.Sync(ctx)
		if err != nil {
			return err
		}
		if now.Term < last.Term || now.Term == last.Term && now.Epoch < last.Epoch {
			return fmt.Errorf("from %v back to %v", last, now)
		}
		last = now
	}
}
