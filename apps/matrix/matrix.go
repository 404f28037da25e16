package main

import (
	"math/rand/v2"
	"sync"
)

// matrix is square, row after row.
type matrix struct {
	size  int
	cells []uint64
}

func newMatrix(size int) matrix { return matrix{size, make([]uint64, size*size)} }

func random(size int, seed uint64) matrix {
	source := rand.New(rand.NewPCG(seed, 0))
	m := newMatrix(size)
	for i := range m.cells {
		m.cells[i] = source.Uint64()
	}
	return m
}

func (m matrix) row(number int) []uint64 {
	return m.cells[number*m.size : (number+1)*m.size]
}

// raise multiplies the matrix by itself power times; stepped is told of each.
func raise(base matrix, power, workers int, stepped func(step int)) matrix {
	now, next := base, newMatrix(base.size)
	spare := newMatrix(base.size)
	for step := 1; step <= power; step++ {
		multiply(next, now, base, workers)
		if step == 1 {
			now, next = next, spare // The base itself is never written to.
		} else {
			now, next = next, now
		}
		stepped(step)
	}
	return now
}

// multiply sets product to a times b. Workers take rows from a channel.
func multiply(product, a, b matrix, workers int) {
	rows := make(chan int, a.size)
	for number := range a.size {
		rows <- number
	}
	close(rows)
	var working sync.WaitGroup
	for range workers {
		working.Go(func() {
			for number := range rows {
				multiplyRow(product.row(number), a.row(number), b)
			}
		})
	}
	working.Wait()
}

// multiplyRow goes through b row by row, as it lies in memory.
func multiplyRow(product, row []uint64, b matrix) {
	clear(product)
	for k, factor := range row {
		for column, cell := range b.row(k) {
			product[column] += factor * cell
		}
	}
}
