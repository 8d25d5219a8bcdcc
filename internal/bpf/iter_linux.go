package bpf

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

const (
	readLen  = 32 << 10    // holds all that one read of an iterator gives (bpf_seq_read)
	aheadLen = 4 * readLen // few hand-overs: waking a goroutine costs as much as ten records
)

// readIter reads an iterator to its end. take gives back what it did not use.
func readIter(ctx context.Context, in io.Reader, take func([]byte) ([]byte, error)) error {
	buf := make([]byte, 2*readLen)
	held := 0
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := in.Read(buf[held:])
		if n > 0 {
			rest, err := take(buf[:held+n])
			if err != nil {
				return err
			}
			held = copy(buf, rest)
			if held == len(buf) {
				return errors.New("a record is longer than any can be")
			}
		}
		if over, err := ended(err); over {
			if err == nil && held > 0 {
				err = fmt.Errorf("the last record was cut at %d bytes", held)
			}
			return err
		}
	}
}

// ended tells whether nothing follows a read, and why unless that is the end.
func ended(err error) (bool, error) {
	switch {
	case err == nil, errors.Is(err, unix.EINTR):
	case errors.Is(err, unix.EAGAIN): // a million objects without a record: read on
	case errors.Is(err, io.EOF):
		return true, nil
	default:
		return true, err
	}
	return false, nil
}

// readAhead is readIter for a take that has work to do: the kernel goes on
// meanwhile.
func readAhead(ctx context.Context, in io.Reader, take func([]byte) ([]byte, error)) (err error) {
	a := &ahead{full: make(chan []byte, 1), free: make(chan []byte, 2)}
	for range cap(a.free) {
		a.free <- make([]byte, aheadLen)
	}
	go a.read(in)
	for b := range a.full {
		var rest []byte
		if rest, err = take(b); err == nil {
			err = ctx.Err()
		}
		if len(rest) > 0 && err == nil { // a read that has room for it gives all of a record
			err = fmt.Errorf("a record was cut at %d bytes", len(rest))
		}
		if err != nil {
			break
		}
		a.free <- b[:cap(b)]
	}
	close(a.free)
	for range a.full { // until it has let go of in
	}
	return errors.Join(err, a.err)
}

// ahead reads on a goroutine of its own.
type ahead struct {
	full chan []byte
	free chan []byte // closed to end it
	err  error       // set when full is closed
}

func (a *ahead) read(in io.Reader) {
	defer close(a.full)
	for b := range a.free {
		n, over := 0, false
		for !over && len(b)-n >= readLen {
			got, err := in.Read(b[n:])
			n += got
			over, a.err = ended(err)
		}
		if a.full <- b[:n]; over {
			return
		}
	}
}
