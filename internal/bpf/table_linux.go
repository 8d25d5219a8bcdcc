package bpf

import (
	"context"
	"errors"
	"io"
	"math/bits"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// tableLen is how many places a table for so many cookies has.
func tableLen(n int) int { return max(1024, 1<<bits.Len(uint(2*n-1))) }

// findPlace is the reverse of find of c/table.h: it looks for a free place.
func findPlace(size int, cookie uint64, free func(n int) bool) (n int, ok bool) {
	const neighbours, probes = 16, 64
	at := uint32(cookie/neighbours*0x9e3779b97f4a7c15>>32)*neighbours + uint32(cookie%neighbours)
	for i := range uint32(probes) {
		if n = int((at + i) & uint32(size-1)); free(n) {
			return n, true
		}
	}
	return 0, false
}

// walkAll has an iterator visit the sockets of the calling thread's network
// namespace.
func walkAll(ctx context.Context, program *ebpf.Program) error {
	it, err := link.AttachIter(link.IterOptions{Program: program})
	if err != nil {
		return explain(err)
	}
	in, err := walkOf(it, 0, false)
	if err != nil {
		return errors.Join(err, it.Close())
	}
	err = readIter(ctx, in, func([]byte) ([]byte, error) { return nil, nil })
	return errors.Join(err, closeAll(in, it))
}

func store[T any](m *ebpf.Map, list []T) error {
	memory, err := m.Memory()
	if err == nil && len(list) > 0 {
		_, err = memory.WriteAt(bytesOf(list), 0)
	}
	return err
}

func bytesOf[T any](list []T) []byte {
	var one T
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(list))), len(list)*int(unsafe.Sizeof(one)))
}

func closeAll(list ...io.Closer) error {
	var errs []error
	for _, c := range list {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
