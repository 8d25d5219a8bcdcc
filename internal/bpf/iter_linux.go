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
	readLen  = 32 << 10 // what one read of an iterator gives at most, on pages of 4 KiB (bpf_seq_read)
	fewest   = 3        // buffers to read ahead
	mostHeld = 2048     // of them: some three million connections
)

// reads are so many in one call of readv(2).
const reads = 4

// walk is an iterator that was opened, of records of one length. One read(2)
// gives 32 KiB at most, some 0.3 ms of the kernel's work, and after each the
// runtime would make the goroutine queue for a processor. So one call makes
// several, each of as many whole records as there is room for: the kernel goes
// on only after one that was filled to the last byte.
type walk struct {
	*os.File
	record int  // 0 when it is not known
	alone  bool // as SocketsOptions has it
}

// chunk is the length of one of several reads. The kernel never fills its
// buffer to the last byte (seq_write).
func chunk(record int) int { return (readLen - 1) / record * record }

func (w walk) Read(b []byte) (int, error) {
	if w.record == 0 || len(b) < chunk(w.record) {
		return w.File.Read(b)
	}
	var parts [reads]unix.Iovec
	n := 0
	for size := chunk(w.record); n < reads && len(b) >= size; n++ {
		parts[n].Base = &b[0]
		parts[n].SetLen(size)
		b = b[size:]
	}
	call := unix.Syscall
	if w.alone {
		call = unix.RawSyscall
	}
	got, _, errno := call(unix.SYS_READV, w.Fd(), uintptr(unsafe.Pointer(&parts)), uintptr(n))
	runtime.KeepAlive(w.File)
	switch {
	case errno != 0:
		return 0, errno
	case got == 0:
		return 0, io.EOF
	}
	return int(got), nil
}

// walkOf opens an iterator for one walk.
func walkOf(it *link.Iter, record int, alone bool) (io.ReadCloser, error) {
	in, err := it.Open()
	if err != nil {
		return nil, explain(err)
	}
	f, ok := in.(*os.File)
	if !ok {
		return in, nil
	}
	return walk{f, record, alone}, nil
}

// readIter reads an iterator to its end. take gives back what it did not use.
func readIter(ctx context.Context, in io.Reader, take func([]byte) ([]byte, error)) error {
	buf := make([]byte, reads*readLen)
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

// aheadLen is the length of a buffer of connections.
const aheadLen = reads * ((readLen - 1) / recordLen * recordLen)

// readAhead is readIter for connections, with which there is work to do: the
// kernel goes on meanwhile. Nothing is taken before hold is closed, if there is
// one, but held.
func readAhead(ctx context.Context, in io.Reader, hold <-chan struct{}, take func([]byte) ([]byte, error)) (err error) {
	a := &ahead{hold: hold, full: make(chan []byte, mostHeld), free: make(chan []byte, mostHeld), stop: make(chan struct{})}
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
	for err = ctx.Err(); err == nil; err = ctx.Err() {
		b, more := <-a.full
		if !more {
			break
		}
		var rest []byte
		if rest, err = take(b); err == nil && len(rest) > 0 { // a read gives whole records
			err = fmt.Errorf("a record was cut at %d bytes", len(rest))
		}
		if err != nil {
			break
		}
		a.free <- b[:cap(b)]
	}
	close(a.stop)
	for range a.full { // until it has let go of in
	}
	return errors.Join(err, a.err)
}

// ahead reads on a goroutine of its own.
type ahead struct {
	hold       <-chan struct{}
	stop       chan struct{}
	full, free chan []byte
	err        error // set when full is closed
}

// buffer is a free one, of n that there are. While there is a hold, one is made
// rather than waited for. It is nil when no more is wanted.
func (a *ahead) buffer(n int) []byte {
	select {
	case <-a.stop:
		return nil
	default:
	}
	select {
	case b := <-a.free:
		return b
	default:
	}
	select {
	case <-a.hold:
	default:
		if a.hold != nil && n < mostHeld {
			return make([]byte, aheadLen)
		}
	}
	select {
	case b := <-a.free:
		return b
	case <-a.stop:
		return nil
	}
}

func (a *ahead) read(in io.Reader) {
	defer close(a.full)
	for count := fewest; ; count++ {
		b := a.buffer(count)
		if b == nil {
			return
		}
		n, over := 0, false
		for n == 0 && !over {
			var err error
			n, err = in.Read(b)
			over, a.err = ended(err)
		}
		if a.full <- b[:n]; over {
			return
		}
	}
}
