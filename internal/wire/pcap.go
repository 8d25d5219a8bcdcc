package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"time"
)

// The formats are read here, and not by github.com/gopacket/gopacket, to which
// the tests compare: its tables of all protocols are a tenth of what any
// command would take of memory.

// record is a packet in a capture file. Its data is valid until the next one.
type record struct {
	time   time.Time
	iface  int // index in its file
	link   Link
	length int // of the whole packet
	data   []byte
}

// mostPacket is more than any capture keeps of a packet (MAXIMUM_SNAPLEN of
// libpcap).
const mostPacket = 256 << 10

// pcapFile reads draft-ietf-opsawg-pcap.
type pcapFile struct {
	r     *bufio.Reader
	order binary.ByteOrder
	unit  time.Duration // of a fraction of a second
	link  Link
	buf   []byte
}

// Magic numbers of pcap, with times in microseconds and nanoseconds.
const (
	magicMicro = 0xa1b2c3d4
	magicNano  = 0xa1b23c4d
)

// openPcap reads the head, 24 bytes.
func openPcap(r *bufio.Reader) (*pcapFile, error) {
	var head [24]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	f := &pcapFile{r: r}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		switch order.Uint32(head[:]) {
		case magicMicro:
			f.order, f.unit = order, time.Microsecond
		case magicNano:
			f.order, f.unit = order, time.Nanosecond
		}
	}
	if f.order == nil {
		return nil, fmt.Errorf("it begins with %x", head[:4])
	}
	if major, minor := f.order.Uint16(head[4:]), f.order.Uint16(head[6:]); major != 2 || minor < 3 {
		// Up to 2.2 two lengths stand the other way round.
		return nil, fmt.Errorf("version %d.%d of pcap, known are 2.3 and 2.4", major, minor)
	}
	f.link = Link(f.order.Uint32(head[20:])) // flags above 16 bits
	return f, nil
}

func (f *pcapFile) next() (record, error) {
	var head [16]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return record{}, err
	}
	kept, length := f.order.Uint32(head[8:]), f.order.Uint32(head[12:])
	if kept > mostPacket {
		return record{}, fmt.Errorf("packet of %d bytes", kept)
	}
	f.buf = grow(f.buf, int(kept))
	if _, err := io.ReadFull(f.r, f.buf); err != nil {
		return record{}, noEOF(err)
	}
	at := time.Unix(int64(f.order.Uint32(head[:])), int64(f.order.Uint32(head[4:]))*int64(f.unit))
	return record{time: at, link: f.link, length: int(length), data: f.buf}, nil
}

// grow gives a slice of n bytes, b's if that is long enough.
func grow(b []byte, n int) []byte {
	if cap(b) < n {
		b = make([]byte, n)
	}
	return b[:n]
}

// pcapngFile reads draft-ietf-opsawg-pcapng.
type pcapngFile struct {
	r      *bufio.Reader
	order  binary.ByteOrder // of the section
	ifaces []ngInterface    // of the section
	buf    []byte
}

// ngInterface is what an Interface Description Block tells.
type ngInterface struct {
	link   Link
	kept   uint32 // of a packet, 0 for all
	perSec uint64 // units of time
	offset int64  // seconds
}

// Blocks, by their type.
const (
	blockInterface = 1
	blockPacket    = 2 // obsolete
	blockSimple    = 3
	blockEnhanced  = 6
	blockSection   = 0x0a0d0d0a
)

const (
	mostBlock  = 1 << 20 // bytes, of those that are read
	mostIfaces = 1 << 16
)

// openPcapng reads the first section's head.
func openPcapng(r *bufio.Reader) (*pcapngFile, error) {
	f := &pcapngFile{r: r}
	kind, _, err := f.block()
	if err == nil && kind != blockSection {
		err = errors.New("it begins with no section")
	}
	return f, err
}

// next gives the next packet of those blocks that have one.
func (f *pcapngFile) next() (record, error) {
	for {
		kind, body, err := f.block()
		if err != nil {
			return record{}, err
		}
		switch kind {
		case blockInterface:
			if err := f.describe(body); err != nil {
				return record{}, err
			}
		case blockEnhanced, blockPacket:
			return f.packet(kind, body)
		case blockSimple:
			return f.simple(body)
		}
	}
}

// block reads the next block. Of one that has no packet it gives no body.
func (f *pcapngFile) block() (kind uint32, body []byte, err error) {
	head, err := f.r.Peek(12)
	if err != nil {
		if errors.Is(err, io.EOF) && len(head) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	if binary.LittleEndian.Uint32(head) == blockSection { // reads the same from either end
		switch magic := head[8:12]; {
		case binary.LittleEndian.Uint32(magic) == 0x1a2b3c4d:
			f.order = binary.LittleEndian
		case binary.BigEndian.Uint32(magic) == 0x1a2b3c4d:
			f.order = binary.BigEndian
		default:
			return 0, nil, errors.New("section of no known byte order")
		}
		f.ifaces = nil
	} else if f.order == nil {
		return 0, nil, errors.New("it begins with no section")
	}
	kind = f.order.Uint32(head)
	size := f.order.Uint32(head[4:])
	if size < 12 || size%4 != 0 {
		return 0, nil, fmt.Errorf("block of %d bytes", size)
	}
	switch kind {
	case blockSection, blockInterface, blockPacket, blockSimple, blockEnhanced:
	default:
		_, err := io.CopyN(io.Discard, f.r, int64(size))
		return kind, nil, noEOF(err)
	}
	if size > mostBlock {
		return 0, nil, fmt.Errorf("block of %d bytes", size)
	}
	f.buf = grow(f.buf, int(size))
	if _, err := io.ReadFull(f.r, f.buf); err != nil {
		return 0, nil, noEOF(err)
	}
	if f.order.Uint32(f.buf[size-4:]) != size {
		return 0, nil, errors.New("block with two lengths")
	}
	body = f.buf[8 : size-4]
	if kind == blockSection && (len(body) < 16 || f.order.Uint16(body[4:]) != 1) {
		return 0, nil, errors.New("version of pcapng that is not known")
	}
	return kind, body, nil
}

// Options of an interface.
const (
	optionEnd        = 0
	optionResolution = 9
	optionOffset     = 14
)

// describe takes up an interface.
func (f *pcapngFile) describe(body []byte) error {
	if len(body) < 8 || len(f.ifaces) >= mostIfaces {
		return errors.New("interface that cannot be read")
	}
	i := ngInterface{link: Link(f.order.Uint16(body)), kept: f.order.Uint32(body[4:]), perSec: 1e6}
	for rest := body[8:]; len(rest) >= 4; {
		option, size := f.order.Uint16(rest), int(f.order.Uint16(rest[2:]))
		if rest = rest[4:]; option == optionEnd || size > len(rest) {
			break
		}
		switch {
		case option == optionResolution && size == 1:
			var ok bool
			if i.perSec, ok = resolution(rest[0]); !ok {
				return fmt.Errorf("interface with times of resolution 0x%02x", rest[0])
			}
		case option == optionOffset && size == 8:
			i.offset = int64(f.order.Uint64(rest))
		}
		rest = rest[min((size+3)/4*4, len(rest)):]
	}
	f.ifaces = append(f.ifaces, i)
	return nil
}

// resolution is how many units a second has: powers of ten, or of two with
// the highest bit.
func resolution(b byte) (perSec uint64, ok bool) {
	base, power := uint64(10), b
	if b&0x80 != 0 {
		base, power = 2, b&0x7f
	}
	perSec = 1
	for range power {
		high, low := bits.Mul64(perSec, base)
		if high != 0 {
			return 0, false
		}
		perSec = low
	}
	return perSec, true
}

// time is a timestamp's.
func (i *ngInterface) time(units uint64) time.Time {
	high, low := bits.Mul64(units%i.perSec, 1e9)
	nanos, _ := bits.Div64(high, low, i.perSec)
	return time.Unix(int64(units/i.perSec)+i.offset, int64(nanos))
}

// packet reads an Enhanced Packet Block, or the Packet Block before it.
func (f *pcapngFile) packet(kind uint32, body []byte) (record, error) {
	if len(body) < 20 {
		return record{}, errors.New("packet that is cut short")
	}
	index := f.order.Uint32(body)
	if kind == blockPacket {
		index = uint32(f.order.Uint16(body)) // and a count of drops
	}
	kept, length := f.order.Uint32(body[12:]), f.order.Uint32(body[16:])
	if uint64(index) >= uint64(len(f.ifaces)) || uint64(kept) > uint64(len(body)-20) {
		return record{}, errors.New("packet of no interface, or cut short")
	}
	i := &f.ifaces[index]
	at := i.time(uint64(f.order.Uint32(body[4:]))<<32 | uint64(f.order.Uint32(body[8:])))
	return record{time: at, iface: int(index), link: i.link, length: int(length), data: body[20 : 20+kept]}, nil
}

// simple reads a Simple Packet Block, which has no time.
func (f *pcapngFile) simple(body []byte) (record, error) {
	if len(body) < 4 || len(f.ifaces) == 0 {
		return record{}, errors.New("packet of no interface, or cut short")
	}
	i, length := &f.ifaces[0], f.order.Uint32(body)
	kept := min(length, uint32(len(body)-4))
	if i.kept > 0 {
		kept = min(kept, i.kept)
	}
	return record{link: i.link, length: int(length), data: body[4 : 4+kept]}, nil
}
