package wire

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// Reader reads the TCP segments of a pcap or pcapng file
// (draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng), compressed by gzip or
// not.
type Reader struct {
	next    func() ([]byte, gopacket.CaptureInfo, error)
	link    func(gopacket.CaptureInfo) Link
	skipped [skips]int
}

// Magic numbers of pcapng and gzip; all others are for the reader of pcap.
const (
	magicSection = 0x0a0d0d0a
	magicGzip    = 0x1f8b
)

// NewReader reads the head of a file.
func NewReader(r io.Reader) (*Reader, error) {
	b := bufio.NewReaderSize(r, 1<<16)
	head, err := b.Peek(4)
	if err != nil {
		return nil, fmt.Errorf("read capture: neither pcap nor pcapng: %w", noEOF(err))
	}
	compressed := binary.BigEndian.Uint16(head) == magicGzip
	if compressed || binary.BigEndian.Uint32(head) == magicSection {
		ng, err := pcapgo.NewNgReader(b, pcapgo.NgReaderOptions{WantMixedLinkType: true, SkipUnknownVersion: true})
		if err == nil {
			return &Reader{next: ng.ZeroCopyReadPacketData, link: linkOfPacket}, nil
		}
		if !compressed {
			return nil, fmt.Errorf("read capture: %w", noEOF(err))
		}
		return nil, fmt.Errorf("read capture: compressed, but no pcapng; decompress it first: %w", noEOF(err))
	}
	old, err := pcapgo.NewReader(b)
	if err != nil {
		return nil, fmt.Errorf("read capture: neither pcap nor pcapng: %w", noEOF(err))
	}
	link := Link(old.LinkType())
	return &Reader{next: old.ZeroCopyReadPacketData, link: func(gopacket.CaptureInfo) Link { return link }}, nil
}

func linkOfPacket(ci gopacket.CaptureInfo) Link {
	if len(ci.AncillaryData) > 0 {
		if link, ok := ci.AncillaryData[0].(layers.LinkType); ok {
			return Link(link)
		}
	}
	return 1<<16 - 1
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
		b, ci, err := r.next()
		if err != nil {
			if err == io.EOF { //nolint:errorlint // the clean end, and no other
				return nil
			}
			return fmt.Errorf("read packet %d: %w", n+1, err)
		}
		s = Segment{Time: ci.Timestamp, Interface: int32(ci.InterfaceIndex)}
		if skip := Parse(r.link(ci), b, ci.Length, &s); skip != Taken {
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
	ng  *pcapgo.NgWriter
	buf []byte
}

// NewWriter writes the head of a file.
func NewWriter(w io.Writer) (*Writer, error) {
	options := pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{Application: "deadpeer"}}
	ng, err := pcapgo.NewNgWriterInterface(w, pcapgo.NgInterface{
		Name: "any", LinkType: layers.LinkTypeLinuxSLL2, SnapLength: snapLength + 20,
		TimestampResolution: 9,
	}, options)
	if err != nil {
		return nil, fmt.Errorf("write capture: %w", err)
	}
	return &Writer{ng: ng}, nil
}

// Write adds a packet.
func (w *Writer) Write(p *Packet) error {
	w.buf = p.appendSLL2(w.buf[:0])
	err := w.ng.WritePacket(gopacket.CaptureInfo{
		Timestamp: p.Time, CaptureLength: len(w.buf), Length: p.Length + len(w.buf) - len(p.Data),
	}, w.buf)
	if err != nil {
		return fmt.Errorf("write capture: %w", err)
	}
	return nil
}

// Flush writes out what is held back.
func (w *Writer) Flush() error {
	if err := w.ng.Flush(); err != nil {
		return fmt.Errorf("write capture: %w", err)
	}
	return nil
}
