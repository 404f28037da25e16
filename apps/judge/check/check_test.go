package check

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"checksync/apps/judge/history"

	"github.com/anishathalye/porcupine"
)

func put(client int, value string, call, ret int64) history.Operation {
	return history.Operation{Client: client, Op: history.Put, Key: "k", Value: value, Result: history.Ok, Call: call, Return: ret}
}

func get(client int, found string, call, ret int64) history.Operation {
	o := history.Operation{Client: client, Op: history.Get, Key: "k", Result: history.Ok, Found: found, Call: call, Return: ret}
	if found == "" {
		o.Result = history.None
	}
	return o
}

func cas(client int, expected, value string, result history.Result, found string, call, ret int64) history.Operation {
	return history.Operation{
		Client: client, Op: history.Cas, Key: "k", Expected: expected, Value: value, Result: result, Found: found,
		Call: call, Return: ret,
	}
}

func unanswered(o history.Operation) history.Operation {
	o.Result, o.Found, o.Return = history.Unknown, "", 0
	return o
}

func judge(t *testing.T, operations ...history.Operation) Verdict {
	t.Helper()
	return Judge(operations, Options{Timeout: 10 * time.Second, PictureDir: t.TempDir(), Pictures: 1})
}

func expect(t *testing.T, v Verdict, linearizable string, lost, stale, neverWritten int) {
	t.Helper()
	if v.Linearizable != linearizable || v.LostWrites != lost || v.StaleReads != stale || v.NeverWritten != neverWritten {
		t.Errorf("not %s with %d lost, %d stale, %d never written, but %+v", linearizable, lost, stale, neverWritten, v)
	}
}

func TestConcurrentWritesMayTakeEffectInAnyOrder(t *testing.T) {
	expect(t, judge(t, put(1, "a", 0, 10), put(2, "b", 5, 15), get(3, "b", 6, 8), get(3, "a", 9, 20)), "yes", 0, 0, 0)
}

func TestSwapsThatFitAreLinearizable(t *testing.T) {
	expect(t, judge(t,
		get(1, "", 0, 1), put(1, "a", 2, 3), cas(1, "a", "b", history.Ok, "", 4, 5),
		cas(2, "a", "c", history.Conflict, "b", 6, 7), get(2, "b", 8, 9)), "yes", 0, 0, 0)
}

func TestTwoSwapsOfOneValueAreFound(t *testing.T) {
	expect(t, judge(t, put(1, "a", 0, 1), cas(1, "a", "b", history.Ok, "", 2, 10), cas(2, "a", "c", history.Ok, "", 3, 11)), "no", 0, 0, 0)
}

func TestLostWriteIsFoundWithItsTimes(t *testing.T) {
	v := judge(t, put(1, "a", 0, 1), put(1, "b", 2, 3), get(2, "a", 4, 5), get(2, "a", 6, 7))
	expect(t, v, "no", 1, 0, 0)
	want := Lost{Key: "k", Client: 1, Value: "b", Call: 2, Return: 3, SeenBy: 2, SeenAt: 4, FoundBy: "a"}
	if v.Lost[0] != want || v.LostFirstNs != 3 || v.LostLastNs != 3 {
		t.Errorf("not %+v, but %+v", want, v)
	}
	if broken := v.Violations[0]; broken.Client != 2 || broken.Return != 5 {
		t.Errorf("the first get shows it, not %+v", broken)
	}
	if picture, err := os.Stat(v.Violations[0].Picture); err != nil || picture.Size() == 0 {
		t.Errorf("no picture: %v", err)
	}
}

func TestWriteThatComesBackWasNotLostButReadStale(t *testing.T) {
	expect(t, judge(t, put(1, "a", 0, 1), put(1, "b", 2, 3), get(2, "a", 4, 5), get(2, "b", 6, 7)), "no", 0, 1, 0)
}

func TestKeyThatVanishesIsALostWrite(t *testing.T) {
	expect(t, judge(t, put(1, "a", 0, 1), get(1, "", 2, 3)), "no", 1, 0, 0)
}

func TestHalfAWriteIsFound(t *testing.T) {
	expect(t, judge(t, put(1, "aaaa", 0, 1), put(1, "bbbb", 2, 3), get(2, "bbaa", 4, 5)), "no", 0, 0, 1)
}

func TestUnknownWriteMayTakeEffectLateOrNever(t *testing.T) {
	late := unanswered(put(1, "b", 2, 0))
	expect(t, judge(t, put(1, "a", 0, 1), late, get(2, "a", 10, 11), get(2, "b", 12, 13)), "yes", 0, 0, 0)
	expect(t, judge(t, put(1, "a", 0, 1), late, get(2, "a", 10, 11), get(2, "a", 12, 13)), "yes", 0, 0, 0)
	// But once seen it is there.
	expect(t, judge(t, put(1, "a", 0, 1), late, get(2, "b", 10, 11), get(2, "a", 12, 13)), "no", 0, 0, 0)
	// And it can't be seen before it was called.
	expect(t, judge(t, put(1, "a", 0, 1), get(2, "b", 0, 1), late), "no", 0, 0, 0)
}

func TestUnknownSwapDependsOnWhatItFinds(t *testing.T) {
	swap := unanswered(cas(1, "a", "b", history.Ok, "", 2, 0))
	expect(t, judge(t, put(1, "a", 0, 1), swap, get(2, "b", 4, 5)), "yes", 0, 0, 0)
	expect(t, judge(t, put(1, "x", 0, 1), swap, get(2, "x", 4, 5)), "yes", 0, 0, 0)
	expect(t, judge(t, put(1, "x", 0, 1), swap, get(2, "b", 4, 5)), "no", 0, 0, 0)
}

func TestKeysAreJudgedEachAlone(t *testing.T) {
	other := put(1, "a", 0, 1)
	other.Key = "other"
	v := judge(t, other, put(1, "a", 0, 1), get(1, "", 2, 3))
	expect(t, v, "no", 1, 0, 0)
	if v.Keys != 2 || len(v.Violations) != 1 || v.Violations[0].Key != "k" {
		t.Errorf("only k is wrong: %+v", v)
	}
}

// TestPreparedHistoryHasTheVerdictOfTheWhole compares what is judged, settled and cut, with Porcupine's verdict on
// the whole history with all unknown operations open for ever, over random small histories, right and wrong.
func TestPreparedHistoryHasTheVerdictOfTheWhole(t *testing.T) {
	verdicts := make(map[porcupine.CheckResult]int)
	for seed := range uint64(4000) {
		operations := randomHistory(rand.New(rand.NewPCG(seed, 0)))
		pointers := make([]*history.Operation, len(operations))
		whole := make([]porcupine.Operation, len(operations))
		for i := range operations {
			o := &operations[i]
			pointers[i] = o
			whole[i] = porcupine.Operation{ClientId: o.Client, Input: o, Call: o.Call, Return: o.Return}
			if o.Result == history.Unknown {
				whole[i].Return = forever
			}
		}
		want := porcupine.CheckOperationsTimeout(model(held{}), whole, 10*time.Second)
		judged := judgeKey("k", pointers, 10*time.Second)
		if judged.result != want {
			t.Fatalf("seed %d: judged %s, but the whole is %s: %+v", seed, judged.result, want, operations)
		}
		if found := judged.findings; want == porcupine.Ok && len(found.lost)+found.stale+len(found.stray) > 0 {
			t.Fatalf("seed %d: findings in a linearizable history: %+v: %+v", seed, found, operations)
		}
		verdicts[want]++
	}
	if verdicts[porcupine.Ok] < 400 || verdicts[porcupine.Illegal] < 400 {
		t.Errorf("the histories are not mixed enough: %v", verdicts)
	}
}

// randomHistory simulates three clients of one register; at random, an answer is lost or a write is rolled back,
// and some values are written twice.
func randomHistory(r *rand.Rand) []history.Operation {
	var operations []history.Operation
	var before, now string
	free := make([]int64, 3)
	for instant := int64(1); len(operations) < 14; instant += 1 + r.Int64N(6) {
		client := r.IntN(len(free))
		if free[client] >= instant {
			continue
		}
		call := max(free[client]+1, instant-r.Int64N(6))
		o := history.Operation{Client: client, Key: "k", Call: call, Return: instant + r.Int64N(6), Result: history.Ok}
		free[client] = o.Return
		value := fmt.Sprint("v", len(operations))
		if r.IntN(8) == 0 {
			value = "twice"
		}
		switch r.IntN(4) {
		case 0, 1:
			o.Op, o.Found = history.Get, now
			if now == "" {
				o.Result = history.None
			}
		case 2:
			o.Op, o.Value = history.Put, value
			before, now = now, value
		case 3:
			o.Op, o.Value, o.Expected = history.Cas, value, now
			if r.IntN(3) == 0 {
				o.Expected = "something else"
			}
			switch {
			case now == "":
				o.Result = history.None
			case o.Expected != now:
				o.Result = history.Conflict
				if r.IntN(4) > 0 {
					o.Found = now
				}
			default:
				before, now = now, value
			}
		}
		if r.IntN(6) == 0 {
			o = unanswered(o)
		}
		if r.IntN(12) == 0 {
			now = before
		}
		operations = append(operations, o)
	}
	return operations
}

func TestLongHistoryWithoutPausesIsJudgedInPieces(t *testing.T) {
	var operations []history.Operation
	for i := range int64(50_000) {
		operations = append(operations, put(1, fmt.Sprint(i), 4*i+1, 4*i+2), get(2, fmt.Sprint(i), 4*i+3, 4*i+4))
	}
	expect(t, judge(t, operations...), "yes", 0, 0, 0)
}
