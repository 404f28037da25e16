package check

import (
	"cmp"
	"slices"
	"time"

	"checksync/apps/judge/history"

	"github.com/anishathalye/porcupine"
)

// failure is a piece that fits no order, cut off after the first answer by which it does not.
type failure struct {
	piece
	last porcupine.Operation
}

// pictureOperations is how many operations before the failure a picture shows at most.
const pictureOperations = 200

// narrow looks for that answer by halves: what was seen up to some instant of a linearizable history is
// linearizable, so there is one instant from which on it is not.
func narrow(whole piece, timeout time.Duration) *failure {
	returns := make([]int64, 0, len(whole.operations))
	for _, entry := range whole.operations {
		if entry.Return != forever {
			returns = append(returns, entry.Return)
		}
	}
	slices.Sort(returns)
	first, _ := slices.BinarySearchFunc(returns, true, func(instant int64, _ bool) int {
		result := porcupine.CheckOperationsTimeout(model(whole.initial), upTo(whole.operations, instant), timeout)
		if result == porcupine.Illegal {
			return 0
		}
		return -1
	})
	instant := returns[min(first, len(returns)-1)]
	failed := &failure{piece: piece{initial: whole.initial, operations: upTo(whole.operations, instant)}}
	failed.last = slices.MaxFunc(failed.operations, func(a, b porcupine.Operation) int {
		return cmp.Compare(answeredAt(a), answeredAt(b))
	})
	return failed
}

func answeredAt(entry porcupine.Operation) int64 {
	if entry.Return == forever {
		return -1
	}
	return entry.Return
}

// upTo is the history as it was seen at an instant: what had been called but not answered is unknown.
func upTo(operations []porcupine.Operation, instant int64) []porcupine.Operation {
	var seen []porcupine.Operation
	for _, entry := range operations {
		o := entry.Input.(*history.Operation)
		switch {
		case entry.Return <= instant:
			seen = append(seen, entry)
		case entry.Call <= instant && o.Op != history.Get:
			asked := *o
			asked.Result, asked.Found = history.Unknown, ""
			entry.Input, entry.Return = &asked, forever
			seen = append(seen, entry)
		}
	}
	return seen
}

// draw writes the failure's end as a page for a browser. The beginning is left out if it is long; the
// picture then begins with a key of which nothing is known.
func (f *failure) draw(path string, timeout time.Duration) error {
	shown := f.piece
	if excess := len(shown.operations) - pictureOperations; excess > 0 {
		shown.operations = shown.operations[excess:]
		shown.initial = held{free: true}
	}
	_, info := porcupine.CheckOperationsVerbose(model(shown.initial), shown.operations, timeout)
	return porcupine.VisualizePath(model(shown.initial), info, path)
}
