// Package history is what clients of a key/value server saw, as lines of JSON: one operation a line, in any
// order.
//
//	{"client":3,"op":"put","key":"k1","value":"17","result":"ok","call_ns":1000,"return_ns":2000}
//
// client     number of the client, which had one connection
// op         "get", "put" or "cas"
// key        the key
// value      what a put or a cas wrote
// expected   what a cas wanted to find
// result     "ok"        the get found a value, the put was done, the cas swapped
//
//	"none"      there was no such key: of a get, or of a cas, which then did nothing
//	"conflict"  the cas found something else and did nothing
//	"unknown"   no answer came: the operation may take effect at any time after the call, or never
//
// found      what a get read, or a cas met in a conflict ("" if the server does not tell)
// call_ns    when the request was handed to the kernel
// return_ns  when the answer was read; 0 if none came
//
// The times are nanoseconds of one clock that never goes back, the same for all clients of a file and of all
// files that are judged together. Values that no two operations write to the same key make the check fast,
// and its findings exact.
package history

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"sync"
)

// Op is what a client asked for.
type Op string

const (
	Get Op = "get"
	Put Op = "put"
	Cas Op = "cas"
)

// Result is what it was told.
type Result string

const (
	Ok       Result = "ok"
	None     Result = "none"
	Conflict Result = "conflict"
	Unknown  Result = "unknown"
)

// Operation is one line.
type Operation struct {
	Client   int    `json:"client"`
	Op       Op     `json:"op"`
	Key      string `json:"key"`
	Value    string `json:"value,omitempty"`
	Expected string `json:"expected,omitempty"`
	Result   Result `json:"result"`
	Found    string `json:"found,omitempty"`
	Call     int64  `json:"call_ns"`
	Return   int64  `json:"return_ns,omitempty"`
}

// Writes reports whether the operation may have changed the key.
func (o *Operation) Writes() bool {
	return o.Op == Put && o.Result != None || o.Op == Cas && (o.Result == Ok || o.Result == Unknown)
}

// Observed is the value that the operation is known to have met, if it met one.
func (o *Operation) Observed() (value string, met bool) {
	switch {
	case o.Op == Get && o.Result == Ok:
		return o.Found, true
	case o.Op == Cas && o.Result == Ok:
		return o.Expected, true
	case o.Op == Cas && o.Result == Conflict && o.Found != "":
		return o.Found, true
	default:
		return "", false
	}
}

func (o *Operation) validate() error {
	known := o.Result == Ok || o.Result == Unknown ||
		o.Result == None && o.Op != Put || o.Result == Conflict && o.Op == Cas
	switch {
	case o.Op != Get && o.Op != Put && o.Op != Cas:
		return fmt.Errorf("unknown op %q", o.Op)
	case !known:
		return fmt.Errorf("a %s has no result %q", o.Op, o.Result)
	case o.Result != Unknown && o.Return < o.Call:
		return fmt.Errorf("answered at %d, before its call at %d", o.Return, o.Call)
	}
	return nil
}

// Read reads all operations of a file.
func Read(in io.Reader) ([]Operation, error) {
	lines := bufio.NewReaderSize(in, 256<<10)
	var operations []Operation
	for number := 1; ; number++ {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF && len(line) == 0 {
			return operations, nil
		}
		if err != nil && err != io.EOF {
			return nil, err
		}
		var o Operation
		if err := json.Unmarshal(line, &o); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if err := o.validate(); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		operations = append(operations, o)
	}
}

// Writer writes operations of many clients. A nil Writer writes nowhere.
type Writer struct {
	mu  sync.Mutex
	out *bufio.Writer
	err error
}

func NewWriter(out io.Writer) *Writer {
	return &Writer{out: bufio.NewWriterSize(out, 256<<10)}
}

// Write adds operations. An error shows at Flush.
func (w *Writer) Write(operations []Operation) {
	if w == nil {
		return
	}
	var lines []byte
	for i := range operations {
		lines = appendLine(lines, &operations[i])
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		_, w.err = w.out.Write(lines)
	}
}

// Flush makes what was written so far readable by others.
func (w *Writer) Flush() error {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = w.out.Flush()
	}
	return w.err
}

// appendLine is json.Marshal for this one type, at a tenth of its price: a load must not spend its time here.
func appendLine(line []byte, o *Operation) []byte {
	line = append(line, `{"client":`...)
	line = strconv.AppendInt(line, int64(o.Client), 10)
	line = appendField(line, `,"op":`, string(o.Op))
	line = appendField(line, `,"key":`, o.Key)
	line = appendField(line, `,"value":`, o.Value)
	line = appendField(line, `,"expected":`, o.Expected)
	line = appendField(line, `,"result":`, string(o.Result))
	line = appendField(line, `,"found":`, o.Found)
	line = append(line, `,"call_ns":`...)
	line = strconv.AppendInt(line, o.Call, 10)
	if o.Return != 0 {
		line = append(line, `,"return_ns":`...)
		line = strconv.AppendInt(line, o.Return, 10)
	}
	return append(line, "}\n"...)
}

func appendField(line []byte, name, value string) []byte {
	if value == "" {
		return line
	}
	line = append(line, name...)
	for i := range len(value) {
		if c := value[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, _ := json.Marshal(value) // Of a string: cannot fail.
			return append(line, quoted...)
		}
	}
	line = append(line, '"')
	line = append(line, value...)
	return append(line, '"')
}
