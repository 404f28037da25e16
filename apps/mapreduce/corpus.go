package main

import (
	"bufio"
	"flag"
	"io"
	"math"
	"math/rand/v2"
)

// vocabulary is how many words a corpus has at most.
const vocabulary = 20_000

func runGenerate(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("mapreduce generate", flag.ContinueOnError)
	length := flags.Int("bytes", 4<<20, "about how long")
	seed := flags.Uint64("seed", 1, "the same seed makes the same text")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return generate(out, *length, *seed)
}

// generate writes lines of made-up words, a few of which are frequent and most of which are rare, as in any language.
func generate(out io.Writer, length int, seed uint64) error {
	random := rand.New(rand.NewPCG(seed, 0))
	words := make([]string, vocabulary)
	for i := range words {
		words[i] = madeUp(random)
	}
	w := bufio.NewWriter(out)
	for written, column := 0, 0; written < length; {
		// By Zipf: the word of rank r comes about once in r.
		rank := int(math.Exp(random.Float64()*math.Log(vocabulary))) - 1
		word := words[rank]
		separator := byte(' ')
		if column += len(word) + 1; column > 72 {
			separator, column = '\n', 0
		}
		w.WriteString(word)
		w.WriteByte(separator)
		written += len(word) + 1
	}
	w.WriteByte('\n')
	return w.Flush()
}

func madeUp(random *rand.Rand) string {
	const consonants, vowels = "bcdfghklmnprstvwz", "aeiou"
	var word []byte
	for range 1 + random.IntN(4) {
		word = append(word, consonants[random.IntN(len(consonants))], vowels[random.IntN(len(vowels))])
	}
	return string(word)
}
