// Package check judges histories: each key is a register of its own, and a history is linearizable if and only
// if each key's is. Porcupine decides; this package prepares its work and explains its verdict.
package check

import (
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"checksync/apps/judge/history"

	"github.com/anishathalye/porcupine"
)

// Verdict is what a judgement prints.
type Verdict struct {
	Linearizable string      `json:"linearizable"` // "yes", "no", or "undecided": out of time.
	Operations   int         `json:"operations"`
	Keys         int         `json:"keys"`
	Gets         int         `json:"gets"`
	Puts         int         `json:"puts"`
	Cas          int         `json:"cas"`
	Unknown      int         `json:"unknown"` // Of these, how many had no answer.
	Lost         []Lost      `json:"lost"`    // At most findingsMax.
	LostWrites   int         `json:"lost_writes"`
	LostFirstNs  int64       `json:"lost_first_ns"` // When the first and the last lost write were acknowledged.
	LostLastNs   int64       `json:"lost_last_ns"`
	StaleReads   int         `json:"stale_reads"`
	Strays       []Stray     `json:"never_written"` // At most findingsMax.
	NeverWritten int         `json:"never_written_count"`
	Violations   []Violation `json:"violations"` // By key.
	Undecided    []string    `json:"undecided_keys"`
	Seconds      float64     `json:"seconds"`
}

// Violation is one key whose history fits no order.
type Violation struct {
	Key string `json:"key"`
	// Up to which answer the history is still linearizable, and by which it is not any more.
	Client      int    `json:"client"`
	Op          string `json:"op"`
	Call        int64  `json:"call_ns"`
	Return      int64  `json:"return_ns"`
	Picture     string `json:"picture,omitempty"`
	PictureNote string `json:"picture_error,omitempty"`
}

// findingsMax bounds what a verdict lists one by one; the counts are always of all.
const findingsMax = 100

// Options say how to judge.
type Options struct {
	Timeout    time.Duration // For each piece of a history.
	PictureDir string        // Where pictures of violations go; nowhere if empty.
	Pictures   int           // How many at most.
}

// Judge judges operations of any number of keys.
func Judge(operations []history.Operation, options Options) Verdict {
	started := time.Now()
	verdict := Verdict{Operations: len(operations), Lost: []Lost{}, Strays: []Stray{}, Violations: []Violation{}, Undecided: []string{}}
	keys := make(map[string][]*history.Operation)
	for i := range operations {
		o := &operations[i]
		keys[o.Key] = append(keys[o.Key], o)
		verdict.count(o)
	}
	verdict.Keys = len(keys)
	for _, judged := range judgeKeys(keys, options.Timeout) {
		verdict.add(judged, options)
	}
	slices.SortFunc(verdict.Lost, func(a, b Lost) int { return int(a.Return - b.Return) })
	verdict.Linearizable = "yes"
	switch {
	case len(verdict.Violations) > 0:
		verdict.Linearizable = "no"
	case len(verdict.Undecided) > 0:
		verdict.Linearizable = "undecided"
	}
	verdict.Seconds = time.Since(started).Seconds()
	return verdict
}

func (v *Verdict) count(o *history.Operation) {
	switch o.Op {
	case history.Get:
		v.Gets++
	case history.Put:
		v.Puts++
	case history.Cas:
		v.Cas++
	}
	if o.Result == history.Unknown {
		v.Unknown++
	}
}

// judgedKey is what is known of one key.
type judgedKey struct {
	key      string
	result   porcupine.CheckResult
	failed   *failure // If the result is Illegal.
	findings findings
}

// judgeKeys judges on all processors; the answer is in the order of the keys.
func judgeKeys(keys map[string][]*history.Operation, timeout time.Duration) []judgedKey {
	names := make([]string, 0, len(keys))
	for name := range keys {
		names = append(names, name)
	}
	slices.Sort(names)
	judged := make([]judgedKey, len(names))
	next := make(chan int)
	var done sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		done.Go(func() {
			for i := range next {
				judged[i] = judgeKey(names[i], keys[names[i]], timeout)
			}
		})
	}
	for i := range names {
		next <- i
	}
	close(next)
	done.Wait()
	return judged
}

func judgeKey(key string, operations []*history.Operation, timeout time.Duration) judgedKey {
	judged := judgedKey{key: key, result: porcupine.Ok, findings: explain(operations)}
	for _, part := range cut(settle(operations)) {
		switch porcupine.CheckOperationsTimeout(model(part.initial), part.operations, timeout) {
		case porcupine.Illegal:
			judged.result, judged.failed = porcupine.Illegal, narrow(part, timeout)
			return judged
		case porcupine.Unknown:
			judged.result = porcupine.Unknown // A later piece may still be found wrong.
		}
	}
	return judged
}

func (v *Verdict) add(judged judgedKey, options Options) {
	for _, l := range judged.findings.lost {
		v.LostWrites++
		if v.LostFirstNs == 0 || l.Return < v.LostFirstNs {
			v.LostFirstNs = l.Return
		}
		v.LostLastNs = max(v.LostLastNs, l.Return)
		if len(v.Lost) < findingsMax {
			v.Lost = append(v.Lost, l)
		}
	}
	v.StaleReads += judged.findings.stale
	v.NeverWritten += len(judged.findings.stray)
	v.Strays = append(v.Strays, judged.findings.stray[:min(len(judged.findings.stray), findingsMax-len(v.Strays))]...)
	switch judged.result {
	case porcupine.Unknown:
		v.Undecided = append(v.Undecided, judged.key)
	case porcupine.Illegal:
		v.Violations = append(v.Violations, judged.failed.violation(judged.key, len(v.Violations), options))
	}
}

func (f *failure) violation(key string, number int, options Options) Violation {
	o := f.last.Input.(*history.Operation)
	v := Violation{Key: key, Client: o.Client, Op: describe(o), Call: f.last.Call, Return: f.last.Return}
	if options.PictureDir != "" && number < options.Pictures {
		v.Picture = filepath.Join(options.PictureDir, fmt.Sprintf("violation-%d.html", number+1))
		if err := f.draw(v.Picture, options.Timeout); err != nil {
			v.Picture, v.PictureNote = "", err.Error()
		}
	}
	return v
}
