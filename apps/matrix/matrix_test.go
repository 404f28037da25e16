package main

import (
	"slices"
	"strings"
	"testing"
)

func TestAPowerIsTheProductOfItsCells(t *testing.T) {
	base := matrix{2, []uint64{1, 1, 1, 0}}
	// Of Fibonacci's numbers: multiplied ten times, the matrix is the eleventh power.
	if found := raise(base, 10, 3, func(int) {}); !slices.Equal(found.cells, []uint64{144, 89, 89, 55}) {
		t.Errorf("%v", found.cells)
	}
	if !slices.Equal(base.cells, []uint64{1, 1, 1, 0}) {
		t.Errorf("the matrix itself was changed: %v", base.cells)
	}
}

func TestTheResultDoesNotDependOnTheWorkers(t *testing.T) {
	var steps int
	one := raise(random(40, 1), 7, 1, func(int) { steps++ })
	many := raise(random(40, 1), 7, 8, func(int) {})
	other := raise(random(40, 2), 7, 8, func(int) {})
	if !slices.Equal(one.cells, many.cells) || slices.Equal(one.cells, other.cells) {
		t.Error("the result is not that of the seed alone")
	}
	if steps != 7 {
		t.Errorf("%d steps", steps)
	}
}

func TestItPrintsItsProgressAndADigest(t *testing.T) {
	var out strings.Builder
	if err := run([]string{"--size", "10", "--power", "2"}, &out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 4 || lines[0] != "ready" || lines[2] != "step 2 of 2" || len(lines[3]) != len("digest ")+64 {
		t.Errorf("%q", lines)
	}
	if err := run([]string{"--size", "0"}, &out); err == nil {
		t.Error("a matrix without rows")
	}
}
