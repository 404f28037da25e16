package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"
)

// count is a word, and how often it came.
type count struct {
	Word  string
	Times int
}

// splits cuts a text into about so many parts, between words.
func splits(text []byte, parts int) [][]byte {
	var found [][]byte
	for parts = max(parts, 1); len(text) > 0; parts-- {
		end := len(text) / max(parts, 1)
		if next := bytes.IndexFunc(text[end:], unicode.IsSpace); next >= 0 && parts > 1 {
			end += next + 1
		} else {
			end = len(text)
		}
		found = append(found, text[:end])
		text = text[end:]
	}
	return found
}

func sorted(counts map[string]int) []count {
	found := make([]count, 0, len(counts))
	for word, times := range counts {
		found = append(found, count{word, times})
	}
	slices.SortFunc(found, func(a, b count) int { return cmp.Compare(a.Word, b.Word) })
	return found
}

// finish writes the counts, a word a line, and prints how many there are and their digest.
func finish(counts []count, path string, out io.Writer) error {
	var text strings.Builder
	for _, c := range counts {
		fmt.Fprintf(&text, "%s %d\n", c.Word, c.Times)
	}
	if path != "" {
		if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(out, "words %d\ndigest %x\n", len(counts), sha256.Sum256([]byte(text.String())))
	return err
}
