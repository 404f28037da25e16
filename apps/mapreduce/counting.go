package main

import (
	"bytes"
	"flag"
	"hash/fnv"
	"io"
	"os"
	"unicode"
)

// wordsOf counts the words of a text.
func wordsOf(text []byte) map[string]int {
	counts := make(map[string]int)
	isNoLetter := func(r rune) bool { return !unicode.IsLetter(r) }
	for word := range bytes.FieldsFuncSeq(text, isNoLetter) {
		counts[string(bytes.ToLower(word))]++
	}
	return counts
}

// partition says which reduce task a word belongs to.
func partition(word string, reduces int) int {
	hash := fnv.New32a()
	io.WriteString(hash, word)
	return int(hash.Sum32() % uint32(reduces))
}

// reduced sums up what the map tasks found.
func reduced(parts [][]count) []count {
	total := make(map[string]int)
	for _, part := range parts {
		for _, c := range part {
			total[c.Word] += c.Times
		}
	}
	return sorted(total)
}

// mapped counts the words of a text, a list for each reduce task.
func mapped(text []byte, reduces int) [][]count {
	lists := make([][]count, reduces)
	for _, c := range sorted(wordsOf(text)) {
		number := partition(c.Word, reduces)
		lists[number] = append(lists[number], c)
	}
	return lists
}

func runCount(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("mapreduce count", flag.ContinueOnError)
	corpus := flags.String("corpus", "", "file with the text")
	output := flags.String("output", "", "file for the counts")
	if err := flags.Parse(args); err != nil {
		return err
	}
	text, err := os.ReadFile(*corpus)
	if err != nil {
		return err
	}
	return finish(sorted(wordsOf(text)), *output, out)
}
