// Package checksync is what a program that CheckSync protects may say to its manager. No program has to.
//
// [Sync] returns when everything that happened before the call is committed: the death of this host does not take it
// back any more. [Epoch] and [Role] tell how things are, and [OnPromote] that this process was restored on another
// host.
//
// A call that waits while its host dies is answered on the next one: the process is restored in the middle of it.
// Underneath is HTTP over the socket that CHECKSYNC_SOCKET names; a [Manager] has its own settings.
package checksync

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

const socketVariable = "CHECKSYNC_SOCKET"

// ErrNotProtected says that this process is not run by `checksync run`.
var ErrNotProtected = errors.New(socketVariable + " is not set; start the program with `checksync run`")

// Checkpoint is the name of one. Later ones are greater, in the term first.
type Checkpoint struct {
	Term  uint64 `json:"term"`
	Epoch uint64 `json:"epoch"`
}

func (c Checkpoint) String() string { return fmt.Sprintf("%d/%d", c.Term, c.Epoch) }

// Standing is where this process runs, and how well it is protected.
type Standing struct {
	App  string `json:"app"`
	Host string `json:"host"`
	// Role is "primary" for a process that runs.
	Role string `json:"role"`
	// Term grows with every takeover: a fencing token, if what is written elsewhere carries it.
	Term      uint64 `json:"term"`
	Protected bool   `json:"protected"`
	// Reason says why it is not protected.
	Reason string `json:"reason"`
	// Restored is the checkpoint that this process was restored from, if it was.
	Restored *Checkpoint `json:"restored"`
}

// Unprotected is the error of a [Sync] when nobody would go on if this host died now.
type Unprotected struct{ Reason string }

func (u *Unprotected) Error() string { return "the app is not protected: " + u.Reason }

// Refused is any other answer that is not the one that was asked for.
type Refused struct {
	Status int
	Reason string
}

func (r *Refused) Error() string {
	return fmt.Sprintf("the manager answers %d: %s", r.Status, r.Reason)
}

// Manager is a manager's socket, with connections that calls share one after the other.
type Manager struct {
	// Socket is its path.
	Socket string
	// Patience is how long Sync waits for protection where there is none, if it is not zero. Without one it is refused
	// once the app has been unprotected for a second, and at once when that is longer ago.
	Patience time.Duration

	mutex sync.Mutex
	idle  []*connection
	// next is the round of Sync that has not been asked for yet; asking says that there is one under way.
	next   *round
	asking bool
}

// round is one question for all who called Sync before it was asked.
type round struct {
	done chan struct{}
	told Checkpoint
	err  error
}

// idleMax is how many connections are kept for the next call.
const idleMax = 16

var usual = sync.OnceValue(func() *Manager { return &Manager{Socket: os.Getenv(socketVariable)} })

// Sync returns once everything before the call is committed, with the checkpoint that has it. An error of type
// *Unprotected says that it is as safe as this host is.
func Sync(ctx context.Context) (Checkpoint, error) { return usual().Sync(ctx) }

// Epoch returns the newest committed checkpoint, and whether there is one in this term.
func Epoch(ctx context.Context) (Checkpoint, bool, error) { return usual().Epoch(ctx) }

// Role returns where this process runs, and how well it is protected.
func Role(ctx context.Context) (Standing, error) { return usual().Role(ctx) }

// OnPromote calls promoted in a goroutine of its own, each time that this process was restored on another host, until
// ctx is done.
func OnPromote(ctx context.Context, promoted func(Standing)) error {
	return usual().OnPromote(ctx, promoted)
}

// Sync is the package's Sync. Calls at one time share a question: the one under way may be older than what the caller
// did, so it is the next.
func (m *Manager) Sync(ctx context.Context) (Checkpoint, error) {
	m.mutex.Lock()
	if m.next == nil {
		m.next = &round{done: make(chan struct{})}
	}
	mine := m.next
	if !m.asking {
		m.asking = true
		go m.askRounds()
	}
	m.mutex.Unlock()
	select {
	case <-mine.done:
		return mine.told, mine.err
	case <-ctx.Done():
		return Checkpoint{}, context.Cause(ctx)
	}
}

// askRounds asks until nobody has called since it asked last.
func (m *Manager) askRounds() {
	for {
		m.mutex.Lock()
		now := m.next
		m.next, m.asking = nil, now != nil
		m.mutex.Unlock()
		if now == nil {
			return
		}
		now.told, now.err = m.sync(context.Background())
		close(now.done)
	}
}

func (m *Manager) sync(ctx context.Context) (Checkpoint, error) {
	target := "/v1/sync"
	if m.Patience > 0 {
		target += "?patience=" + strconv.FormatInt(m.Patience.Microseconds(), 10) + "us"
	}
	var told Checkpoint
	err := m.ask(ctx, "POST", target, &told)
	return told, err
}

// Epoch is the package's Epoch.
func (m *Manager) Epoch(ctx context.Context) (Checkpoint, bool, error) {
	var told struct {
		Term  uint64  `json:"term"`
		Epoch *uint64 `json:"epoch"`
	}
	if err := m.ask(ctx, "GET", "/v1/epoch", &told); err != nil || told.Epoch == nil {
		return Checkpoint{}, false, err
	}
	return Checkpoint{Term: told.Term, Epoch: *told.Epoch}, true, nil
}

// Role is the package's Role.
func (m *Manager) Role(ctx context.Context) (Standing, error) {
	var told Standing
	err := m.ask(ctx, "GET", "/v1/role", &told)
	return told, err
}

// OnPromote is the package's OnPromote.
func (m *Manager) OnPromote(ctx context.Context, promoted func(Standing)) error {
	now, err := m.Role(ctx)
	if err != nil {
		return err
	}
	go m.watch(ctx, now.Term, promoted)
	return nil
}

func (m *Manager) watch(ctx context.Context, term uint64, promoted func(Standing)) {
	const again = time.Second
	for ctx.Err() == nil {
		var told Standing
		// It waits in the manager, and is answered by the next one.
		err := m.ask(ctx, "GET", "/v1/role?after="+strconv.FormatUint(term, 10), &told)
		if err == nil {
			term = told.Term
			promoted(told)
			continue
		}
		// A manager that has died may be followed by one that finds us.
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
}

func (m *Manager) ask(ctx context.Context, method, target string, told any) error {
	if m.Socket == "" {
		return ErrNotProtected
	}
	status, body, err := m.exchange(ctx, method, target)
	if err != nil {
		return err
	}
	if status == 200 {
		if err := json.Unmarshal(body, told); err != nil {
			return &Refused{Status: status, Reason: err.Error()}
		}
		return nil
	}
	refusal := struct {
		Reason string `json:"reason"`
	}{Reason: "no reason"}
	if err := json.Unmarshal(body, &refusal); err != nil {
		refusal.Reason = err.Error()
	}
	if status == 503 {
		return &Unprotected{Reason: refusal.Reason}
	}
	return &Refused{Status: status, Reason: refusal.Reason}
}

// exchange asks again when a connection broke: every question may be asked twice.
func (m *Manager) exchange(ctx context.Context, method, target string) (int, []byte, error) {
	if kept := m.take(); kept != nil {
		if status, body, err := kept.ask(ctx, method, target); err == nil {
			m.keep(kept)
			return status, body, nil
		}
		kept.close()
		if ctx.Err() != nil {
			return 0, nil, context.Cause(ctx)
		}
	}
	const tries = 2
	var broken error
	for range tries {
		var dialer net.Dialer
		stream, err := dialer.DialContext(ctx, "unix", m.Socket)
		if err != nil {
			return 0, nil, fmt.Errorf("no manager listens: %w", err)
		}
		fresh := newConnection(stream)
		status, body, err := fresh.ask(ctx, method, target)
		if err == nil {
			m.keep(fresh)
			return status, body, nil
		}
		fresh.close()
		if ctx.Err() != nil {
			return 0, nil, context.Cause(ctx)
		}
		broken = err
	}
	return 0, nil, fmt.Errorf("the connection to the manager broke: %w", broken)
}

func (m *Manager) take() *connection {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	last := len(m.idle) - 1
	if last < 0 {
		return nil
	}
	kept := m.idle[last]
	m.idle = m.idle[:last]
	return kept
}

func (m *Manager) keep(used *connection) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if used.last || len(m.idle) >= idleMax {
		used.close()
		return
	}
	m.idle = append(m.idle, used)
}
