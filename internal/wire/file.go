package wire

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// Reader reads the TCP segments of a pcap or pcapng file
// (draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng), compressed by gzip or
// not.
type Reader struct {
	next    func() (record, error)
	skipped [skips]int
}

const magicGzip = 0x1f8b

// NewReader reads the head of a file.
func NewReader(r io.Reader) (*Reader, error) {
	b := bufio.NewReaderSize(r, 1<<16)
	if head, err := b.Peek(2); err == nil && binary.BigEndian.Uint16(head) == magicGzip {
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("read capture: decompress: %w", noEOF(err))
		}
		b = bufio.NewReaderSize(z, 1<<16)
	}
	head, err := b.Peek(4)
	if err != nil {
		return nil, fmt.Errorf("read capture: neither pcap nor pcapng: %w", noEOF(err))
	}
	if binary.BigEndian.Uint32(head) == blockSection {
		f, err := openPcapng(b)
		if err != nil {
			return nil, fmt.Errorf("read capture: %w", noEOF(err))
		}
		return &Reader{next: f.next}, nil
	}
	f, err := openPcap(b)
	if err != nil {
		return nil, fmt.Errorf("read capture: neither pcap nor pcapng: %w", noEOF(err))
	}
	return &Reader{next: f.next}, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Each visits the segments in the order of the file, until its end, an error
// of visit, or ctx's. A file that ends within a packet, as one does that is
// still being written, gives an error that matches io.ErrUnexpectedEOF.
func (r *Reader) Each(ctx context.Context, visit func(*Segment) error) error {
	var s Segment
	for n := 0; ; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		p, err := r.next()
		if err != nil {
			if err == io.EOF { //nolint:errorlint // the clean end, and no other
				return nil
			}
			return fmt.Errorf("read packet %d: %w", n+1, err)
		}
		s = Segment{Time: p.time, Interface: int32(p.iface)}
		if skip := Parse(p.link, p.data, p.length, &s); skip != Taken {
			r.skipped[skip]++
			continue
		}
		if err := visit(&s); err != nil {
			return err
		}
	}
}

// Skipped is how many packets were left out so far for that reason.
func (r *Reader) Skipped(why Skip) int { return r.skipped[why] }

// Writer writes a pcapng file of what a Capture hands over.
type Writer struct {
	out *bufio.Writer
	buf []byte
}

// NewWriter writes the head of a file: a section in little-endian order, and
// an interface with times in nanoseconds.
func NewWriter(w io.Writer) (*Writer, error) {
	f := &Writer{out: bufio.NewWriterSize(w, 1<<16)}
	section := binary.LittleEndian.AppendUint32(nil, 0x1a2b3c4d)
	section = append(section, 1, 0, 0, 0)                                       // version 1.0
	section = binary.LittleEndian.AppendUint64(section, math.MaxUint64)         // of a length not said
	section = appendOption(section, 4, "deadpeer")                              // shb_userappl
	link := binary.LittleEndian.AppendUint32(nil, uint32(LinkSLL2))             // and two bytes reserved
	link = binary.LittleEndian.AppendUint32(link, snapLength+20)                // what is kept of a packet
	link = appendOption(appendOption(link, 2, "any"), optionResolution, "\x09") // if_name
	return f, errors.Join(
		f.block(blockSection, binary.LittleEndian.AppendUint32(section, optionEnd)),
		f.block(blockInterface, binary.LittleEndian.AppendUint32(link, optionEnd)))
}

func appendOption(b []byte, code uint16, value string) []byte {
	b = binary.LittleEndian.AppendUint16(b, code)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	return pad(append(b, value...))
}

// pad fills up to four bytes.
func pad(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }

func (f *Writer) block(kind uint32, body []byte) error {
	var head [8]byte
	binary.LittleEndian.PutUint32(head[:], kind)
	binary.LittleEndian.PutUint32(head[4:], uint32(len(body)+12))
	_, _ = f.out.Write(head[:]) // a bufio.Writer keeps its error
	_, _ = f.out.Write(body)
	if _, err := f.out.Write(head[4:]); err != nil {
		return fmt.Errorf("write capture: %w", err)
	}
	return nil
}

// Write adds a packet.
func (f *Writer) Write(p *Packet) error {
	at := uint64(p.Time.UnixNano())
	b := binary.LittleEndian.AppendUint32(f.buf[:0], 0) // the only interface
	b = binary.LittleEndian.AppendUint32(b, uint32(at>>32))
	b = binary.LittleEndian.AppendUint32(b, uint32(at))
	b = binary.LittleEndian.AppendUint64(b, 0) // for the lengths
	head := len(b)
	b = p.appendSLL2(b)
	kept := len(b) - head
	binary.LittleEndian.PutUint32(b[head-8:], uint32(kept))
	binary.LittleEndian.PutUint32(b[head-4:], uint32(p.Length+kept-len(p.Data)))
	f.buf = pad(b)
	return f.block(blockEnhanced, f.buf)
}

// Flush writes out what is held back.
func (f *Writer) Flush() error {
	if err := f.out.Flush(); err != nil {
		return fmt.Errorf("write capture: %w", err)
	}
	return nil
}
