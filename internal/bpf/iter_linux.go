package bpf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

const (
	readLen  = 32 << 10    // holds all that one read of an iterator gives (bpf_seq_read)
	aheadLen = 4 * readLen // few hand-overs: waking a goroutine costs as much as ten records
	fewest   = 3           // of them
	mostHeld = 4096        // of them: some three million connections
)

// file is an iterator that was opened. Its reads are the kernel's work of some
// 0.3 ms each, and wait for nothing. The runtime is not told of them: it would
// take the processor away for each, and make the goroutine queue for another.
type file struct{ io.ReadCloser }

func (f file) Read(b []byte) (int, error) {
	known, ok := f.ReadCloser.(interface{ Fd() uintptr })
	if !ok || len(b) == 0 {
		return f.ReadCloser.Read(b)
	}
	n, _, errno := unix.RawSyscall(unix.SYS_READ, known.Fd(), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	runtime.KeepAlive(known)
	switch {
	case errno != 0:
		return 0, errno
	case n == 0:
		return 0, io.EOF
	}
	return int(n), nil
}

// walkOf opens an iterator for one walk.
func walkOf(it *link.Iter) (io.ReadCloser, error) {
	in, err := it.Open()
	if err != nil {
		return nil, explain(err)
	}
	return file{in}, nil
}

// walkOfPin is walkOf for one that is pinned.
func walkOfPin(path string) (io.ReadCloser, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return file{in}, nil
}

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
// meanwhile. Nothing is taken before hold is closed, if there is one, but held.
func readAhead(ctx context.Context, in io.Reader, hold <-chan struct{}, take func([]byte) ([]byte, error)) (err error) {
	a := &ahead{hold: hold, full: make(chan []byte, mostHeld), free: make(chan []byte, mostHeld)}
	for range fewest {
		a.free <- make([]byte, aheadLen)
	}
	go a.read(in)
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
		}
	}
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
	hold <-chan struct{}
	full chan []byte
	free chan []byte // closed to end it
	err  error       // set when full is closed
}

// buffer is a free one, of n that there are at most. While there is a hold, one
// is made rather than waited for. ok is false when no more is wanted.
func (a *ahead) buffer(n int) (b []byte, ok bool) {
	select {
	case b, ok = <-a.free:
		return b, ok
	default:
	}
	select {
	case <-a.hold:
	default:
		if a.hold != nil && n < mostHeld {
			return make([]byte, aheadLen), true
		}
	}
	b, ok = <-a.free
	return b, ok
}

func (a *ahead) read(in io.Reader) {
	defer close(a.full)
	for count := fewest; ; count++ {
		b, ok := a.buffer(count)
		if !ok {
			return
		}
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
