package wire

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// all reads every packet of a file.
func all(t *testing.T, file []byte) (list []record, err error) {
	t.Helper()
	r, err := NewReader(bytes.NewReader(file))
	for err == nil {
		var p record
		if p, err = r.next(); err == nil {
			p.data = bytes.Clone(p.data)
			list = append(list, p)
		}
	}
	if err == io.EOF { //nolint:errorlint // the clean end, and no other
		err = nil
	}
	return list, err
}

// Files of another writer are read, and ours are read by another reader.
func TestOthersFiles(t *testing.T) {
	t.Parallel()
	at := time.Unix(1700000000, 123456789)
	info := gopacket.CaptureInfo{Timestamp: at, CaptureLength: 5, Length: 60}
	for name, write := range map[string]func(w io.Writer) error{
		"pcap": func(w io.Writer) error {
			p := pcapgo.NewWriter(w)
			return errors.Join(p.WriteFileHeader(65536, layers.LinkTypeLinuxSLL), p.WritePacket(info, []byte("hello")))
		},
		"pcap in nanoseconds": func(w io.Writer) error {
			p := pcapgo.NewWriterNanos(w)
			return errors.Join(p.WriteFileHeader(65536, layers.LinkTypeLinuxSLL), p.WritePacket(info, []byte("hello")))
		},
		"pcapng": func(w io.Writer) error {
			p, err := pcapgo.NewNgWriter(w, layers.LinkTypeLinuxSLL)
			if err != nil {
				return err
			}
			return errors.Join(p.WritePacket(info, []byte("hello")), p.Flush())
		},
	} {
		var file, zipped bytes.Buffer
		if err := write(&file); err != nil {
			t.Fatal(err)
		}
		z := gzip.NewWriter(&zipped)
		_, err := z.Write(file.Bytes())
		if err = errors.Join(err, z.Close()); err != nil {
			t.Fatal(err)
		}
		want := at
		if name == "pcap" {
			want = at.Truncate(time.Microsecond)
		}
		for _, b := range [][]byte{file.Bytes(), zipped.Bytes()} {
			got, err := all(t, b)
			if err != nil || len(got) != 1 || string(got[0].data) != "hello" || got[0].length != 60 || got[0].link != LinkSLL || !got[0].time.Equal(want) {
				t.Errorf("%s: got %v, %v", name, got, err)
			}
		}
	}
	var file bytes.Buffer
	w, err := NewWriter(&file)
	if err == nil {
		err = errors.Join(w.Write(&Packet{Time: at, Data: []byte("hello"), Length: 60}), w.Write(&Packet{Time: at, Data: []byte("you"), Length: 3}), w.Flush())
	}
	if err != nil {
		t.Fatal(err)
	}
	r, err := pcapgo.NewNgReader(&file, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"hello", "you"} {
		b, ci, err := r.ReadPacketData()
		if err != nil || !bytes.HasSuffix(b, []byte(want)) || !ci.Timestamp.Equal(at) || ci.CaptureLength != len(want)+20 {
			t.Errorf("got %q, %+v, %v", b, ci, err)
		}
	}
	if i, err := r.Interface(0); err != nil || i.Name != "any" || i.LinkType != layers.LinkTypeLinuxSLL2 || r.SectionInfo().Application != "deadpeer" {
		t.Errorf("interface %+v, section %+v, %v", i, r.SectionInfo(), err)
	}
}

// block is a block of pcapng.
func block(order binary.AppendByteOrder, kind uint32, body string) string {
	for len(body)%4 != 0 {
		body += "\x00"
	}
	b := order.AppendUint32(order.AppendUint32(nil, kind), uint32(len(body)+12))
	return string(order.AppendUint32(append(b, body...), uint32(len(body)+12)))
}

// numbers are 32 bits each.
func numbers(order binary.AppendByteOrder, list ...uint32) string {
	var b []byte
	for _, n := range list {
		b = order.AppendUint32(b, n)
	}
	return string(b)
}

func TestBlocks(t *testing.T) {
	t.Parallel()
	little, big := binary.LittleEndian, binary.BigEndian
	section := func(order binary.AppendByteOrder) string {
		version := "\x00\x01\x00\x00"
		if order == binary.AppendByteOrder(little) {
			version = "\x01\x00\x00\x00"
		}
		return block(order, blockSection, numbers(order, 0x1a2b3c4d)+version+numbers(order, 1<<32-1, 1<<32-1))
	}
	ethernet := numbers(little, 1, 0)
	file := section(little) +
		block(little, blockInterface, ethernet) +
		block(little, 0xbad, "unknown") +
		block(little, blockInterface, numbers(little, 101, 4)+"\x09\x00\x01\x00\x83\x00\x00\x00"+"\x0e\x00\x08\x00"+numbers(little, 100, 0)) + // eighths of a second, from 100 s on
		block(little, blockEnhanced, numbers(little, 1, 0, 17, 3, 9)+"abc") +
		block(little, blockSimple, numbers(little, 2)+"simple") +
		block(little, blockPacket, "\x00\x00\xff\xff"+numbers(little, 0, 2_500_000, 3, 3)+"old") +
		section(big) +
		block(big, blockInterface, "\x00\x65\x00\x00"+numbers(big, 0)) +
		block(big, blockEnhanced, numbers(big, 0, 0, 7, 3, 3)+"big")
	want := []record{
		{time: time.Unix(102, 125e6), iface: 1, link: LinkRaw, length: 9, data: []byte("abc")},
		{link: LinkEthernet, length: 2, data: []byte("si")},
		{time: time.Unix(2, 5e8), link: LinkEthernet, length: 3, data: []byte("old")},
		{time: time.Unix(0, 7000), link: LinkRaw, length: 3, data: []byte("big")},
	}
	got, err := all(t, []byte(file))
	if err != nil || len(got) != len(want) {
		t.Fatalf("got %v, %v", got, err)
	}
	for i, w := range want {
		if g := got[i]; !g.time.Equal(w.time) || g.iface != w.iface || g.link != w.link || g.length != w.length || string(g.data) != string(w.data) {
			t.Errorf("packet %d is %+v, want %+v", i, g, w)
		}
	}
	for i := 1; i < len(file); i += 7 {
		if _, err := all(t, []byte(file[:i])); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut after %d bytes: %v", i, err)
		}
	}
	for name, test := range map[string]struct{ file, want string }{
		"no section":    {block(little, blockInterface, ethernet), "neither pcap nor pcapng"},
		"byte order":    {block(little, blockSection, numbers(little, 1, 1, 0, 0)), "no known byte order"},
		"version":       {block(little, blockSection, numbers(little, 0x1a2b3c4d, 2, 0, 0)), "version of pcapng"},
		"short section": {block(little, blockSection, numbers(little, 0x1a2b3c4d)), "version of pcapng"},
		"size":          {section(little) + numbers(little, blockEnhanced, 13, 0), "block of 13 bytes"},
		"huge":          {section(little) + numbers(little, blockEnhanced, 1<<31, 0), "block of 2147483648 bytes"},
		"two lengths":   {section(little) + numbers(little, blockEnhanced, 16, 0, 20), "two lengths"},
		"no interface":  {section(little) + block(little, blockEnhanced, numbers(little, 0, 0, 0, 0, 0)), "packet of no interface"},
		"simple":        {section(little) + block(little, blockSimple, numbers(little, 0)), "packet of no interface"},
		"cut packet":    {section(little) + block(little, blockInterface, ethernet) + block(little, blockEnhanced, numbers(little, 0, 0, 0, 5, 5)+"abcd"), "cut short"},
		"short packet":  {section(little) + block(little, blockInterface, ethernet) + block(little, blockEnhanced, numbers(little, 0, 0, 0)), "cut short"},
		"resolution":    {section(little) + block(little, blockInterface, ethernet+"\x09\x00\x01\x00\x7f\x00\x00\x00"), "resolution 0x7f"},
		"pcap version":  {numbers(little, magicMicro, 1, 0, 0, 0, 1), "version 1.0 of pcap"},
		"pcap packet":   {numbers(little, magicMicro, 2|4<<16, 0, 0, 0, 1, 0, 0, 1<<30, 1<<30), "packet of 1073741824 bytes"},
	} {
		if _, err := all(t, []byte(test.file)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
}
