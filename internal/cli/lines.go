package cli

import (
	"io"
	"runtime"
)

// blockLen connections are made into text at a time.
const blockLen = 512

// writeBlocks makes n things into text, a block at a time and several blocks
// at once, and writes them in their order. formatter is called once for each
// of the goroutines, one after the other; what it gives appends the things
// from one number up to another.
func writeBlocks(w io.Writer, n int, formatter func() func(b []byte, from, to int) []byte) error {
	workers := max(1, min(runtime.GOMAXPROCS(0), (n+blockLen-1)/blockLen))
	type lane struct{ full, free chan []byte }
	lanes := make([]lane, workers)
	for i := range lanes {
		l, format := lane{make(chan []byte, 1), make(chan []byte, 2)}, formatter()
		l.free <- nil
		l.free <- nil
		lanes[i] = l
		go func() {
			for from := i * blockLen; from < n; from += workers * blockLen {
				l.full <- format((<-l.free)[:0], from, min(from+blockLen, n))
			}
		}()
	}
	var err error
	for block := range (n + blockLen - 1) / blockLen {
		l := lanes[block%workers]
		b := <-l.full
		if err == nil { // else only wait for the goroutines
			_, err = w.Write(b)
		}
		l.free <- b
	}
	return err
}
