package journal

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
)

// attachmentMagic ends in the version of the format. Boot id and checksum
// follow it.
const attachmentMagic = "deadpeer attachment\x01"

const attachmentHeader = len(attachmentMagic) + 16 + 4

var (
	errNotAttachment = errors.New("not an attachment of this version")
	errAttachment    = errors.New("damaged header")
)

// attachmentBody is what the file of an attachment says.
type attachmentBody struct {
	boot    [16]byte
	about   []byte
	sockets sockets
	partly  bool  // being attached or detached
	records int   // superseded ones too
	end     int64 // of the last good record
}

func (a *attachmentBody) append(b []byte) []byte {
	from := len(b)
	b = append(b, attachmentMagic...)
	b = append(b, a.boot[:]...)
	b = binary.LittleEndian.AppendUint32(b, checksum(b[from:]))
	b = frame(b, func(b []byte) []byte { return append(append(b, byte(kindAbout)), a.about...) })
	for _, s := range a.sockets.list() {
		b = s.append(b)
	}
	if a.partly {
		b = appendWhole(b, false)
	}
	return b
}

func appendWhole(b []byte, whole bool) []byte {
	kind := kindPartly
	if whole {
		kind = kindWhole
	}
	return frame(b, func(b []byte) []byte { return append(b, byte(kind)) })
}

// apply takes over a body whose checksum was right; false if no attachment of
// this version has such a one.
func (a *attachmentBody) apply(body []byte) bool {
	if len(body) == 1 {
		kind := attachedKind(body[0])
		a.partly = kind == kindPartly
		return a.partly || kind == kindWhole
	}
	return a.sockets.apply(body)
}

// readAttachment reads an attachment: the header and what it says of itself
// must be whole; from the first record on that is torn or damaged, nothing is
// believed.
func readAttachment(r io.Reader) (a attachmentBody, err error) {
	br := bufio.NewReaderSize(r, 1<<16)
	var head [attachmentHeader]byte
	n, err := io.ReadFull(br, head[:])
	switch {
	case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return a, err
	case !bytes.HasPrefix(head[:n], []byte(attachmentMagic)):
		return a, errNotAttachment
	case n < attachmentHeader || checksum(head[:n-4]) != binary.LittleEndian.Uint32(head[n-4:]):
		return a, errAttachment
	}
	copy(a.boot[:], head[len(attachmentMagic):])
	a.end = int64(attachmentHeader)
	body, err := nextFrame(br, nil, 1+MaxAbout)
	switch {
	case err != nil:
		return a, err
	case len(body) == 0 || attachedKind(body[0]) != kindAbout:
		return a, errAttachment
	}
	a.about = bytes.Clone(body[1:])
	a.end += int64(longFrameSize + len(body))
	a.sockets = sockets{}
	for {
		if body, err = nextFrame(br, body, attachedSize); err != nil {
			return a, err
		}
		if len(body) == 0 || !a.apply(body) {
			return a, nil
		}
		a.end += int64(longFrameSize + len(body))
		a.records++
	}
}

// nextFrame reads a body of at most the given length into buf; none when there
// is no good one.
func nextFrame(br *bufio.Reader, buf []byte, most int) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(br, size[:]); err != nil {
		return nil, unlessEOF(err)
	}
	n := binary.LittleEndian.Uint32(size[:])
	if n == 0 || n > uint32(most) {
		return nil, nil
	}
	buf = append(append(buf[:0], size[:]...), make([]byte, n+4)...)
	if _, err := io.ReadFull(br, buf[4:]); err != nil {
		return nil, unlessEOF(err)
	}
	body := len(buf) - 4
	if checksum(buf[:body]) != binary.LittleEndian.Uint32(buf[body:]) {
		return nil, nil
	}
	return buf[4:body], nil
}

func unlessEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
