package checksync

import (
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// unwrittenBytesMax bounds what waits to be written: with more, who comes next waits, too.
const unwrittenBytesMax = 1 << 20

// structuresConnection sends changes in one order, and brings them into force when they are committed.
//
// Whoever changes something appends it to the buffer under the lock, and writes the buffer unless somebody else does
// already: so what many goroutines have to say goes with few calls.
type structuresConnection struct {
	socket net.Conn
	raw    syscall.RawConn
	term   uint64
	names  *names
	lease  lease
	ear    ear

	roundTrip atomic.Int64 // Nanoseconds from a write to its commit: a mean that forgets.

	mu        sync.Mutex
	written   sync.Cond
	unwritten []byte
	writing   bool
	open      []change // Not committed, the oldest first.
	submitted uint64
	committed uint64
	failure   error

	writtenUpTo uint64 // The last batch: up to which change it goes, and when it was written.
	writtenAt   time.Time
}

type change struct {
	apply  func()
	commit *Commit
}

// connect returns when the structures are here.
func connect(path string) (*structuresConnection, error) {
	socket, err := net.Dial("unix", path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLost, err)
	}
	c, err := newStructuresConnection(socket.(*net.UnixConn))
	if err != nil {
		socket.Close()
		return nil, err
	}
	every, err := c.greet(newFrameReader(socket))
	if err != nil {
		socket.Close()
		return nil, err
	}
	go c.listen()
	go c.keepLease(every)
	return c, nil
}

// newStructuresConnection is a connection on which nobody listens yet.
func newStructuresConnection(socket *net.UnixConn) (*structuresConnection, error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLost, err)
	}
	c := &structuresConnection{socket: socket, raw: raw, names: newNames(), ear: ear{buffer: make([]byte, 64<<10)}}
	c.written.L = &c.mu
	c.lease.begin()
	return c, nil
}

func (c *structuresConnection) greet(reader *frameReader) (leaseEvery time.Duration, err error) {
	if _, err := c.socket.Write(appendHello(nil)); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrLost, err)
	}
	for {
		f, err := reader.next()
		if err != nil {
			return 0, fmt.Errorf("%w: %w", ErrLost, err)
		}
		switch f.kind {
		case kindWelcome:
			if c.term, err = f.number(2); err != nil {
				return 0, err
			}
		case kindPut, kindStore:
			name, key, value, err := f.change()
			if err != nil {
				return 0, err
			}
			held := append([]byte(nil), value...)
			if f.kind == kindPut {
				c.names.table(name).put(key, held)
			} else {
				c.names.cell(name).store(held)
			}
		case kindReady:
			every, err := f.number(0)
			return time.Duration(every), err
		default:
			return 0, f.refusal()
		}
	}
}

// submit sends a change, which apply brings into force once it is committed.
func (c *structuresConnection) submit(kind byte, name, key string, value []byte, apply func()) (*Commit, error) {
	if err := errors.Join(check("key", len(key), KeyBytesMax), check("value", len(value), ValueBytesMax)); err != nil {
		return nil, err
	}
	commit := &Commit{conn: c, done: make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.writing && len(c.unwritten) > unwrittenBytesMax {
		c.written.Wait()
	}
	if c.failure != nil {
		return nil, c.failure
	}
	c.unwritten = appendChange(c.unwritten, kind, name, key, value)
	c.open = append(c.open, change{apply, commit})
	c.submitted++
	c.write()
	return commit, nil
}

// write writes what waits, unless somebody does. That the manager is gone is told by the one who reads. The lock is
// held before and after, and not while it writes.
func (c *structuresConnection) write() {
	if c.writing {
		return
	}
	c.writing = true
	var buffer []byte
	for len(c.unwritten) > 0 {
		buffer, c.unwritten = c.unwritten, buffer[:0]
		c.writtenUpTo, c.writtenAt = c.submitted, time.Now()
		c.mu.Unlock()
		_, err := c.socket.Write(buffer)
		c.mu.Lock()
		if err != nil {
			c.unwritten = c.unwritten[:0]
		}
		c.written.Broadcast()
	}
	// The next to write needs no new buffer, unless this was a long one.
	if cap(buffer) <= unwrittenBytesMax {
		c.unwritten = buffer[:0]
	}
	c.writing = false
}

// ear has what came from the manager and is no whole frame yet. Whoever holds its lock reads: the one goroutine that
// is there for it, or whoever waits and looks meanwhile.
type ear struct {
	mu     sync.Mutex
	buffer []byte
	filled int
}

// listen reads until the connection is over. It holds nothing while there is nothing to read.
func (c *structuresConnection) listen() {
	var failure error
	err := c.raw.Read(func(fd uintptr) bool {
		c.ear.mu.Lock()
		defer c.ear.mu.Unlock()
		for {
			var more bool
			if more, failure = c.hear(int(fd)); failure != nil || !more {
				return failure != nil
			}
		}
	})
	if failure == nil {
		failure = fmt.Errorf("%w: %w", ErrLost, err)
	}
	c.fail(failure)
}

// hear takes what is there to be read, without waiting. The ear is locked.
func (c *structuresConnection) hear(fd int) (more bool, err error) {
	e := &c.ear
	n, err := syscall.Read(fd, e.buffer[e.filled:])
	switch {
	case err == syscall.EAGAIN || err == syscall.EINTR:
		return err == syscall.EINTR, nil
	case err == nil && n == 0:
		return false, fmt.Errorf("%w: %w", ErrLost, io.EOF)
	case err != nil:
		return false, fmt.Errorf("%w: %w", ErrLost, err)
	}
	e.filled += n
	taken := 0
	for {
		f, length, err := frameIn(e.buffer[taken:e.filled])
		if err != nil {
			return false, err
		}
		if length == 0 {
			break
		}
		taken += length
		if err := c.take(f); err != nil {
			return false, err
		}
	}
	e.filled = copy(e.buffer, e.buffer[taken:e.filled])
	// Nothing that is said here is long.
	if e.filled == len(e.buffer) {
		return false, errCut
	}
	return true, nil
}

func (c *structuresConnection) take(f frame) error {
	switch f.kind {
	case kindCommitted:
		return c.commit(f)
	case kindLease:
		return c.lease.answer(f)
	default:
		return f.refusal()
	}
}

// lookMax is longer than a short round trip. Who waits for a longer one sleeps at once.
const lookMax = 250 * time.Microsecond

// look reads by itself until something is done, if round trips are short: to wake a goroutine, and a core that has gone
// to sleep, takes as long as all the rest of one.
func (c *structuresConnection) look(done <-chan struct{}) {
	if time.Duration(c.roundTrip.Load()) > lookMax {
		return
	}
	begun := time.Now()
	var failure error
	c.raw.Control(func(fd uintptr) {
		for time.Since(begun) < lookMax {
			select {
			case <-done:
				return
			default:
			}
			if c.ear.mu.TryLock() {
				_, failure = c.hear(int(fd))
				c.ear.mu.Unlock()
				if failure != nil {
					return
				}
			}
			runtime.Gosched()
		}
	})
	// Not in there: it closes the socket, which waits until nobody uses it.
	if failure != nil {
		c.fail(failure)
	}
}

// commit brings all changes up to a number into force, and lets go who waits for them.
func (c *structuresConnection) commit(f frame) error {
	count, err := f.number(0)
	if err != nil {
		return err
	}
	c.mu.Lock()
	more := count - c.committed
	if count < c.committed || more > uint64(len(c.open)) {
		c.mu.Unlock()
		return &RefusedError{Why: "it committed what it was not sent"}
	}
	done := append([]change(nil), c.open[:more]...)
	left := copy(c.open, c.open[more:])
	clear(c.open[left:])
	c.open = c.open[:left]
	c.committed = count
	if count >= c.writtenUpTo && !c.writtenAt.IsZero() {
		mean := (c.roundTrip.Load()*7 + int64(time.Since(c.writtenAt))) / 8
		c.roundTrip.Store(mean)
		c.writtenAt = time.Time{}
	}
	c.mu.Unlock()
	for _, d := range done {
		d.apply()
		close(d.commit.done)
	}
	return nil
}

func (c *structuresConnection) fail(err error) {
	c.mu.Lock()
	if c.failure != nil {
		c.mu.Unlock()
		return // The first cause counts.
	}
	c.failure = err
	left := c.open
	c.open = nil
	c.mu.Unlock()
	c.lease.end(err)
	for _, l := range left {
		l.commit.err = err
		close(l.commit.done)
	}
	// Who writes must not wait for a manager that reads no more.
	c.socket.Close()
}

func (c *structuresConnection) mayRead() error {
	if c.lease.valid() {
		return nil
	}
	return c.lease.wait()
}

func (c *structuresConnection) keepLease(every time.Duration) {
	ticks := time.NewTicker(max(every, time.Millisecond))
	defer ticks.Stop()
	for {
		if number, may := c.lease.ask(); may {
			c.mu.Lock()
			c.unwritten = appendQuestion(c.unwritten, number)
			c.write()
			c.mu.Unlock()
		}
		select {
		case <-ticks.C:
		case <-c.lease.over:
			return
		}
	}
}

// lease says until when reads may be answered here. The manager says how long, counted from when it was asked: so the
// span never reaches past what the manager may promise, and no clock but our own is read.
type lease struct {
	origin time.Time
	until  atomic.Int64 // Nanoseconds since the origin.
	over   chan struct{}

	mu        sync.Mutex
	changed   sync.Cond
	questions []question
	asked     uint64
	failure   error
}

type question struct {
	number uint64
	at     time.Duration
}

// questionsMax bounds what the manager has not answered; it answers all, in order.
const questionsMax = 64

func (l *lease) begin() {
	l.origin = time.Now()
	l.over = make(chan struct{})
	l.changed.L = &l.mu
}

func (l *lease) valid() bool { return int64(time.Since(l.origin)) < l.until.Load() }

func (l *lease) ask() (number uint64, may bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.questions) >= questionsMax {
		return 0, false
	}
	l.asked++
	l.questions = append(l.questions, question{l.asked, time.Since(l.origin)})
	return l.asked, true
}

func (l *lease) answer(f frame) error {
	number, err := f.number(0)
	span, other := f.number(8)
	if err := errors.Join(err, other); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.questions) > 0 && l.questions[0].number <= number {
		asked := l.questions[0]
		l.questions = l.questions[1:]
		until := int64(asked.at) + int64(min(span, uint64(time.Hour)))
		if asked.number == number && l.failure == nil && until > l.until.Load() {
			l.until.Store(until)
		}
	}
	l.changed.Broadcast()
	return nil
}

// end lets nobody wait any more.
func (l *lease) end(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failure = err
	l.until.Store(0)
	close(l.over)
	l.changed.Broadcast()
}

// wait returns when there is a lease, or why there will be none.
func (l *lease) wait() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.failure == nil && !l.valid() {
		l.changed.Wait()
	}
	return l.failure
}
