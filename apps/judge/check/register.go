package check

import (
	"fmt"
	"math"

	"checksync/apps/judge/history"

	"github.com/anishathalye/porcupine"
)

// held is the state of one key.
type held struct {
	value string
	set   bool
	free  bool // Not known: the first to look at it tells. Only pictures begin so.
}

func holds(value string) held { return held{value: value, set: true} }

// model is one key, which begins as given.
func model(initial held) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return initial },
		Step: func(state, input, _ any) (bool, any) {
			fits, next := step(state.(held), input.(*history.Operation))
			return fits, next
		},
		DescribeOperation: func(input, _ any) string { return describe(input.(*history.Operation)) },
		DescribeState: func(state any) string {
			switch h := state.(held); {
			case h.free:
				return "not known"
			case h.set:
				return h.value
			default:
				return "no such key"
			}
		},
	}
}

// step answers whether the key, so held, could have given the operation its result, and what it holds then.
func step(now held, o *history.Operation) (bool, held) {
	if now.free {
		return true, afterFirstLook(o)
	}
	next := holds(o.Value)
	switch o.Op {
	case history.Get:
		return o.Result == history.Unknown || now == found(o), now
	case history.Put:
		return true, next
	}
	isExpected := now == holds(o.Expected)
	switch o.Result {
	case history.Ok:
		return isExpected, next
	case history.None:
		return !now.set, now
	case history.Conflict:
		return now.set && !isExpected && (o.Found == "" || now.value == o.Found), now
	default: // Unknown: whatever it finds is right, and decides what it did.
		if isExpected {
			return true, next
		}
		return true, now
	}
}

// found is what an answered get tells of the key.
func found(o *history.Operation) held {
	return held{value: o.Found, set: o.Result == history.Ok}
}

func afterFirstLook(o *history.Operation) held {
	value, met := o.Observed()
	switch {
	case o.Op == history.Put, o.Op == history.Cas && o.Result == history.Ok:
		return holds(o.Value)
	case met:
		return holds(value)
	default:
		return held{free: o.Result != history.None}
	}
}

func describe(o *history.Operation) string {
	call := fmt.Sprintf("%s(%s)", o.Op, o.Key)
	switch o.Op {
	case history.Put:
		call = fmt.Sprintf("put(%s, %s)", o.Key, o.Value)
	case history.Cas:
		call = fmt.Sprintf("cas(%s, %s to %s)", o.Key, o.Expected, o.Value)
	}
	if o.Found != "" {
		return fmt.Sprintf("%s: %s %s", call, o.Result, o.Found)
	}
	return fmt.Sprintf("%s: %s", call, o.Result)
}

// forever is when an operation returns whose outcome is not known.
const forever = math.MaxInt64

// settle prepares the operations of one key: sorted by call, reads without an answer left out, and of writes
// without an answer the interval made as short as what others saw proves. The history that is left is
// linearizable if and only if the whole is:
//
//   - An unknown write may always be put last, where nobody sees it, for its interval never ends. So if the
//     others fit together without it, they fit with it. And if they fit with it though nobody ever met its
//     value, they fit without it: what came right after it did not look.
//   - One whose value was met took effect before the first that met it returned.
//
// An unknown swap whose own value was met has met what it expected. All this needs a value that only this operation
// wrote, and the first that every conflict told what it met; an unknown write for which that is not so, or whose
// value such a write expects, returns at the end of time.
func settle(operations []*history.Operation) []porcupine.Operation {
	operations = byCall(operations)
	seen := observe(operations)
	settled := make([]porcupine.Operation, 0, len(operations))
	for _, o := range operations {
		entry := porcupine.Operation{ClientId: o.Client, Input: o, Call: o.Call, Return: o.Return}
		if o.Result == history.Unknown {
			firstMet, met := seen.firstMet[o.Value]
			switch {
			case o.Op == history.Get, !met && !seen.isOpen(o):
				continue
			case met && seen.writers[o.Value] == 1:
				entry.Return = max(firstMet, o.Call)
			default:
				entry.Return = forever
			}
		}
		settled = append(settled, entry)
	}
	return settled
}

type observations struct {
	writers        map[string]int
	firstMet       map[string]int64 // The earliest return of those that met the value.
	silentConflict bool
	expected       map[string]bool // By unknown swaps that may take effect at any time.
}

// isOpen reports whether nothing more is known of the end of an unknown write.
func (seen *observations) isOpen(o *history.Operation) bool {
	return seen.writers[o.Value] > 1 || seen.silentConflict || seen.expected[o.Value]
}

func observe(operations []*history.Operation) observations {
	seen := observations{writers: make(map[string]int), firstMet: make(map[string]int64), expected: make(map[string]bool)}
	for _, o := range operations {
		if o.Writes() {
			seen.writers[o.Value]++
		}
		if value, met := o.Observed(); met {
			if first, before := seen.firstMet[value]; !before || o.Return < first {
				seen.firstMet[value] = o.Return
			}
		}
		if o.Op == history.Cas && o.Result == history.Conflict && o.Found == "" {
			seen.silentConflict = true
		}
	}
	seen.followSwaps(operations)
	return seen
}

// followSwaps goes back along chains of unknown swaps, from those whose values were met.
func (seen *observations) followSwaps(operations []*history.Operation) {
	for isNew := true; isNew; {
		isNew = false
		for _, o := range operations {
			if o.Op != history.Cas || o.Result != history.Unknown {
				continue
			}
			met, isMet := seen.firstMet[o.Value]
			switch first, before := seen.firstMet[o.Expected]; {
			case isMet && seen.writers[o.Value] == 1:
				if !before || met < first {
					seen.firstMet[o.Expected], isNew = met, true
				}
			case seen.isOpen(o) && !seen.expected[o.Expected]:
				seen.expected[o.Expected], isNew = true, true
			}
		}
	}
}

// piece is a part of one key's history that can be judged alone.
type piece struct {
	initial    held
	operations []porcupine.Operation
}

// cut splits where a get was alone: all before it come before it in every order, all after it after it, and
// it tells what the key held between. Without that, a checker's memory grows with the square of a history.
func cut(settled []porcupine.Operation) []piece {
	var pieces []piece
	current := piece{}
	busyUntil := int64(math.MinInt64)
	for i, entry := range settled {
		current.operations = append(current.operations, entry)
		isAlone := entry.Call > busyUntil && (i+1 == len(settled) || settled[i+1].Call > entry.Return)
		busyUntil = max(busyUntil, entry.Return)
		if o := entry.Input.(*history.Operation); isAlone && o.Op == history.Get {
			pieces = append(pieces, current)
			current = piece{initial: found(o)}
		}
	}
	if len(current.operations) > 0 {
		pieces = append(pieces, current)
	}
	return pieces
}
