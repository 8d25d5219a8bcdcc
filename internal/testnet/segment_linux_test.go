package testnet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
)

// packet makes an IP packet with a TCP segment that carries payload bytes.
func packet(src, dst netip.AddrPort, options, payload int) []byte {
	var b []byte
	tcp := 20 + options
	if src.Addr().Is4() {
		b = binary.BigEndian.AppendUint16([]byte{0x45, 0}, uint16(20+tcp+payload))
		b = append(b, 0, 0, 0x40, 0, 64, 6, 0, 0)
	} else {
		b = binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(tcp+payload))
		b = append(b, 6, 64)
	}
	b = slices.Concat(b, src.Addr().AsSlice(), dst.Addr().AsSlice())
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint32(b, 0xfffffff0)
	b = binary.BigEndian.AppendUint32(b, 0x01020304)
	b = append(b, byte(tcp/4)<<4, byte(ACK|PSH), 0x12, 0x34, 0, 0, 0, 0)
	return append(b, make([]byte, options+payload)...)
}

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestParseSegment(t *testing.T) {
	v4 := packet(addrPort("10.0.0.1:40000"), addrPort("10.0.0.2:5432"), 12, 5)
	v6 := packet(addrPort("[fd00::1]:40000"), addrPort("[fd00::2]:5432"), 12, 5)
	for _, b := range [][]byte{v4, v6} {
		s, ok := parseSegment(b)
		if !ok || s.Src.Port() != 40000 || s.Dst.Port() != 5432 || s.Seq != 0xfffffff0 || s.Ack != 0x01020304 ||
			s.Flags != ACK|PSH || s.Window != 0x1234 || s.Payload != 5 {
			t.Errorf("%v, %v", s, ok)
		}
		header := len(b) - 12 - 5
		for n := range b { // cut short at any length
			if _, ok := parseSegment(b[:n]); ok != (n >= header) {
				t.Errorf("%d bytes of %d: ok %v", n, len(b), ok)
			}
		}
	}
	bad := map[string]func() []byte{
		"udp":              func() []byte { b := bytes.Clone(v4); b[9] = 17; return b },
		"later fragment":   func() []byte { b := bytes.Clone(v4); b[7] = 1; return b },
		"header too short": func() []byte { b := bytes.Clone(v4); b[0] = 0x44; return b },
		"total too short":  func() []byte { b := bytes.Clone(v4); b[2], b[3] = 0, 30; return b },
		"extension header": func() []byte { b := bytes.Clone(v6); b[6] = 0; return b },
		"length too short": func() []byte { b := bytes.Clone(v6); b[4], b[5] = 0, 31; return b },
		"offset too short": func() []byte { b := bytes.Clone(v6); b[40+12] = 0x40; return b },
		"version":          func() []byte { b := bytes.Clone(v6); b[0] = 0x50; return b },
	}
	for name, b := range bad {
		if s, ok := parseSegment(b()); ok {
			t.Errorf("%s: taken for %v", name, s)
		}
	}
	if got := (SYN | ACK).String(); got != "SYN|ACK" {
		t.Errorf("flags %q", got)
	}
}

func FuzzParseSegment(f *testing.F) {
	f.Add(packet(addrPort("10.0.0.1:1"), addrPort("10.0.0.2:2"), 12, 5))
	f.Add(packet(addrPort("[fd00::1]:1"), addrPort("[fd00::2]:2"), 0, 0))
	f.Add([]byte{0x4f})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok := parseSegment(b)
		if ok && (s.Payload < 0 || s.Payload > 0xffff || !s.Src.IsValid() || s.Src.Addr().BitLen() != s.Dst.Addr().BitLen()) {
			t.Errorf("%v", s)
		}
		// A snapshot must tell what the whole packet tells.
		if cut, cutOK := parseSegment(b[:min(len(b), snapLength)]); cutOK != ok || cut != s {
			t.Errorf("%v %v, cut short %v %v", s, ok, cut, cutOK)
		}
	})
}
