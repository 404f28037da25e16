package checksync

import (
	"errors"
	"fmt"
	"os"
)

// The longest key and the longest value; names have at most 255 bytes.
const (
	KeyBytesMax   = 64 << 10
	ValueBytesMax = 256 << 20
)

// ErrNoManager says that no manager started this program.
var ErrNoManager = errors.New("no manager started this program; run it with `checksync run --replicate structures`")

// ErrLost says that the manager is gone. This program is to end: the standby takes over, or has.
var ErrLost = errors.New("the manager of the structures is lost")

// FencedError says who serves instead. Nothing that has not returned without an error will be committed from here.
type FencedError struct {
	Term uint64
	By   string
}

func (e *FencedError) Error() string {
	return fmt.Sprintf("fenced: %s serves the structures in term %d", e.By, e.Term)
}

// RefusedError is a manager that does not take us, and says why.
type RefusedError struct{ Why string }

func (e *RefusedError) Error() string { return "the manager refused: " + e.Why }

// TooLongError names what is longer than any may be.
type TooLongError struct {
	What     string
	Len, Max int
}

func (e *TooLongError) Error() string {
	return fmt.Sprintf("a %s of %d bytes; at most %d are taken", e.What, e.Len, e.Max)
}

// Structures are maps and values whose changes are on the standby before a write returns. Run the program with
// `checksync run --replicate structures`; after a failure the standby starts it, and OpenStructures gives back every
// structure as it was.
//
// What may be relied on:
//   - A write that returned no error is on the standby, or there is none that could take over. One that returned an
//     error may have happened or not; it happens as a whole or not at all.
//   - A read returns what is committed, and nothing that a takeover could lose. A write is seen once it is committed:
//     by its own writer when it returns, by others at about that time.
//   - Writes of all goroutines have one order, and what is lost in a failure is a suffix of it that nobody was told of.
//   - Reads are local and wait for no other reader. A side that may no longer be the one to serve answers none: a read
//     waits until that is settled, or fails with a FencedError.
//
// One process at a time has the structures open. The clock of the reads is the host's monotonic one: a host that is
// suspended, or a virtual machine that stands still with its clock, may answer reads for the rest of a lease, which is
// 80 ms by default, after it goes on.
type Structures struct{ conn *structuresConnection }

// OpenStructures opens the structures of the manager that started this program, as they are.
func OpenStructures() (*Structures, error) {
	path, found := os.LookupEnv("CHECKSYNC_STRUCTURES")
	if !found {
		return nil, ErrNoManager
	}
	return ConnectStructures(path)
}

// ConnectStructures does as OpenStructures, at the manager's socket.
func ConnectStructures(path string) (*Structures, error) {
	conn, err := connect(path)
	if err != nil {
		return nil, err
	}
	return &Structures{conn}, nil
}

// Close ends the connection. What is on its way may be committed or not.
func (s *Structures) Close() error { return s.conn.socket.Close() }

// Term returns the term in which this program serves.
func (s *Structures) Term() uint64 { return s.conn.term }

// Map returns the map with this name, which is empty if it is new.
func (s *Structures) Map(name string) (*Map, error) {
	if err := check("name", len(name), nameBytesMax); err != nil {
		return nil, err
	}
	return &Map{s.conn, name, s.conn.names.table(name)}, nil
}

// Value returns the value with this name.
func (s *Structures) Value(name string) (*Value, error) {
	if err := check("name", len(name), nameBytesMax); err != nil {
		return nil, err
	}
	return &Value{s.conn, name, s.conn.names.cell(name)}, nil
}

// Commit is a change that is on its way.
type Commit struct {
	conn *structuresConnection
	done chan struct{}
	err  error
}

// Wait returns when the standby has it.
func (c *Commit) Wait() error {
	c.conn.look(c.done)
	<-c.done
	return c.err
}

// Done is closed when Wait returns at once.
func (c *Commit) Done() <-chan struct{} { return c.done }

// Map is a replicated map from keys to bytes. The bytes that it gives are not to be changed.
type Map struct {
	conn  *structuresConnection
	name  string
	table *table
}

// Get returns what the map has at the key, and whether it has anything.
func (m *Map) Get(key string) (value []byte, found bool, err error) {
	if err := m.conn.mayRead(); err != nil {
		return nil, false, err
	}
	value, found = m.table.get(key)
	return value, found, nil
}

// Len returns the number of keys.
func (m *Map) Len() (int, error) {
	if err := m.conn.mayRead(); err != nil {
		return 0, err
	}
	return m.table.len(), nil
}

// Range calls each for every key, in no order, until it returns false. Of changes meanwhile some may be seen.
func (m *Map) Range(each func(key string, value []byte) bool) error {
	if err := m.conn.mayRead(); err != nil {
		return err
	}
	m.table.each(each)
	return nil
}

// Put returns when the standby has the pair. It keeps no hold of the value.
func (m *Map) Put(key string, value []byte) error {
	commit, err := m.StartPut(key, value)
	if err != nil {
		return err
	}
	return commit.Wait()
}

// StartPut puts without waiting. Nobody reads it before it is committed; puts are committed in their order.
func (m *Map) StartPut(key string, value []byte) (*Commit, error) {
	held := append([]byte(nil), value...)
	return m.conn.submit(kindPut, m.name, key, held, func() { m.table.put(key, held) })
}

// Delete returns when the standby has forgotten the key.
func (m *Map) Delete(key string) error {
	commit, err := m.StartDelete(key)
	if err != nil {
		return err
	}
	return commit.Wait()
}

// StartDelete deletes without waiting.
func (m *Map) StartDelete(key string) (*Commit, error) {
	return m.conn.submit(kindDelete, m.name, key, nil, func() { m.table.remove(key) })
}

// Value is a replicated value, whole with each store.
type Value struct {
	conn *structuresConnection
	name string
	cell *cell
}

// Load returns what was stored last, and whether anything was. The bytes are not to be changed.
func (v *Value) Load() (value []byte, found bool, err error) {
	if err := v.conn.mayRead(); err != nil {
		return nil, false, err
	}
	value, found = v.cell.load()
	return value, found, nil
}

// Store returns when the standby has the value. Its cost is that of all bytes: what changes in small parts is a Map.
func (v *Value) Store(value []byte) error {
	commit, err := v.StartStore(value)
	if err != nil {
		return err
	}
	return commit.Wait()
}

// StartStore stores without waiting.
func (v *Value) StartStore(value []byte) (*Commit, error) {
	held := append([]byte(nil), value...)
	return v.conn.submit(kindStore, v.name, "", held, func() { v.cell.store(held) })
}

func check(what string, length, limit int) error {
	if length > limit {
		return &TooLongError{what, length, limit}
	}
	return nil
}
