package check

import (
	"cmp"
	"slices"

	"checksync/apps/judge/history"
)

// Lost is an acknowledged write that a later read shows to be gone: the read met what the key held before.
type Lost struct {
	Key     string `json:"key"`
	Client  int    `json:"client"`
	Value   string `json:"value"`
	Call    int64  `json:"call_ns"`
	Return  int64  `json:"return_ns"`
	SeenBy  int    `json:"seen_by_client"`
	SeenAt  int64  `json:"seen_at_ns"` // When the read that shows it was called.
	FoundBy string `json:"found"`      // What that read found instead; "" for no such key.
}

// Stray is a value that was met, but that nobody wrote: half a write, two mixed, or another key's.
type Stray struct {
	Key    string `json:"key"`
	Client int    `json:"client"`
	Value  string `json:"value"`
	Call   int64  `json:"call_ns"`
	Return int64  `json:"return_ns"`
}

// findings are what the plain rules below say of one key. They explain a verdict and never make one; each is
// by itself a proof that the history is not linearizable.
type findings struct {
	lost  []Lost
	stale int
	stray []Stray
}

// explain looks for writes that were acknowledged and then not seen. Write w is gone for a read r, called after
// w had returned, if what r met was written by a write that had returned before w was called, or if r met no
// key at all. If a read that was called later meets w after all, r was stale and w is not lost.
func explain(operations []*history.Operation) findings {
	var found findings
	seen := observe(operations)
	writers := make(map[string]*history.Operation)
	lastMet := make(map[string]int64) // The latest call of those that met the value.
	for _, o := range operations {
		if o.Writes() {
			writers[o.Value] = o
		}
		if value, met := o.Observed(); met {
			lastMet[value] = max(lastMet[value], o.Call)
		}
	}
	acknowledged := acknowledgedWrites(operations)
	gone := make(map[*history.Operation]bool)
	for _, r := range byCall(operations) {
		value, met := r.Observed()
		if !met && r.Result != history.None {
			continue
		}
		writer := writers[value]
		if met && writer == nil {
			found.stray = append(found.stray, Stray{r.Key, r.Client, value, r.Call, r.Return})
			continue
		}
		if met && seen.writers[value] > 1 {
			continue // Which of them it was can't be told.
		}
		isStale := false
		// Acknowledged writes are in the order of their returns: those before r was called, newest first.
		end, _ := slices.BinarySearchFunc(acknowledged, r.Call, func(w *history.Operation, call int64) int {
			return cmp.Compare(w.Return, call)
		})
		for i := end - 1; i >= 0; i-- {
			w := acknowledged[i]
			if met && (writer.Result == history.Unknown || writer.Return >= w.Return) {
				break // What r met is as new as this, and as all that are left.
			}
			if met && writer.Return >= w.Call || gone[w] {
				continue
			}
			if lastMet[w.Value] > r.Call {
				isStale = true
				continue
			}
			gone[w] = true
			found.lost = append(found.lost, Lost{
				Key: w.Key, Client: w.Client, Value: w.Value, Call: w.Call, Return: w.Return,
				SeenBy: r.Client, SeenAt: r.Call, FoundBy: value,
			})
		}
		if isStale {
			found.stale++
		}
	}
	return found
}

func acknowledgedWrites(operations []*history.Operation) []*history.Operation {
	var writes []*history.Operation
	for _, o := range operations {
		if o.Writes() && o.Result == history.Ok {
			writes = append(writes, o)
		}
	}
	slices.SortStableFunc(writes, func(a, b *history.Operation) int { return cmp.Compare(a.Return, b.Return) })
	return writes
}

func byCall(operations []*history.Operation) []*history.Operation {
	sorted := slices.Clone(operations)
	slices.SortStableFunc(sorted, func(a, b *history.Operation) int { return cmp.Compare(a.Call, b.Call) })
	return sorted
}
