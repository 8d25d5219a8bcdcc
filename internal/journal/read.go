package journal

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// magic ends in the version of the format.
const magic = "deadpeer journal\x01"

const (
	headerSize = len(magic) + 16 + 4 + 8 + 4
	fileSuffix = ".journal"
	newSuffix  = ".new" // added to the name of a file that is not complete yet
)

// header says whose journal it is.
type header struct {
	boot  [16]byte // /proc/sys/kernel/random/boot_id
	pid   int32
	start uint64 // of the process, ticks since boot (proc_pid_stat(5), field 22)
}

func (h header) fileName() string { return fmt.Sprintf("%d-%d%s", h.pid, h.start, fileSuffix) }

// parseName reads the name of a journal, which complete says whether it is;
// ok is false for other files.
func parseName(name string) (h header, complete, ok bool) {
	whole := strings.TrimSuffix(name, newSuffix)
	pid, start, _ := strings.Cut(strings.TrimSuffix(whole, fileSuffix), "-")
	p, err := strconv.ParseInt(pid, 10, 32)
	if err != nil {
		return h, false, false
	}
	h.pid = int32(p)
	if h.start, err = strconv.ParseUint(start, 10, 64); err != nil {
		return h, false, false
	}
	return h, whole == name, h.fileName() == whole
}

func (h header) append(b []byte) []byte {
	from := len(b)
	b = append(b, magic...)
	b = append(b, h.boot[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.pid))
	b = binary.LittleEndian.AppendUint64(b, h.start)
	return binary.LittleEndian.AppendUint32(b, checksum(b[from:]))
}

var (
	errNotJournal = errors.New("not a journal of this version")
	errHeader     = errors.New("damaged header")
)

// read gives a journal's header, what is still to be put back, and how many
// bytes at the end could not be used: from the first record on that is torn or
// damaged, nothing is believed.
func read(r io.Reader) (h header, l ledger, torn int64, err error) {
	br := bufio.NewReaderSize(r, 1<<16)
	var head [headerSize]byte
	n, err := io.ReadFull(br, head[:])
	switch {
	case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return h, nil, 0, err
	case !bytes.HasPrefix(head[:n], []byte(magic)):
		return h, nil, 0, errNotJournal
	case n < headerSize || checksum(head[:n-4]) != binary.LittleEndian.Uint32(head[n-4:]):
		return h, nil, 0, errHeader
	}
	b := head[len(magic):]
	copy(h.boot[:], b)
	h.pid = int32(binary.LittleEndian.Uint32(b[16:]))
	h.start = binary.LittleEndian.Uint64(b[20:])

	l = ledger{}
	for {
		size, ok, err := next(br, l)
		if err != nil {
			return h, l, 0, err
		}
		if !ok {
			break
		}
		if _, err := br.Discard(size); err != nil {
			return h, l, 0, err
		}
	}
	torn, err = io.Copy(io.Discard, br)
	return h, l, torn, err
}

// next applies the record that comes next, without consuming it; ok is false
// when there is none, or not a good one.
func next(br *bufio.Reader, l ledger) (size int, ok bool, err error) {
	b, err := br.Peek(2)
	if err == nil {
		if size = frameSize + int(binary.LittleEndian.Uint16(b)); size > maxRecordSize {
			return 0, false, nil
		}
		b, err = br.Peek(size)
	}
	if err == io.EOF {
		return 0, false, nil
	} else if err != nil {
		return 0, false, err
	}
	var r Record
	body := size - 4
	if checksum(b[:body]) != binary.LittleEndian.Uint32(b[body:]) || !r.decode(b[2:body]) {
		return 0, false, nil
	}
	l.apply(r)
	return size, true, nil
}
