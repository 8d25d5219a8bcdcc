package wire_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"deadpeer/internal/wire"
)

// A keepalive probe of Linux, 10.0.0.1:3050 to 10.0.0.9:40112.
const (
	ipv4Header = "45000034 12344000 40060000 0a000001 0a000009"
	tcpHeader  = "0bea9cb0 00000063 000001f4 8010 01f5 0000 0000 0101080a 00000001 00000002"
	ipv6Header = "60000000 0020 06 40 fd000000000000000000000000000001 fd000000000000000000000000000009"
)

func bin(t testing.TB, parts ...string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(strings.Join(parts, ""), " ", ""))
	ok(t, err)
	return b
}

func TestParse(t *testing.T) {
	t.Parallel()
	const ethernet = "0200000000020200000000010800"
	v4 := wire.Segment{Src: us, Dst: them, Seq: 99, Ack: 500, Window: 501, Flags: wire.ACK}
	v6 := v4
	v6.Src, v6.Dst = netip.MustParseAddrPort("[fd00::1]:3050"), netip.MustParseAddrPort("[fd00::9]:40112")
	with := func(s wire.Segment, change func(*wire.Segment)) wire.Segment {
		change(&s)
		return s
	}
	for name, c := range map[string]struct {
		link   wire.Link
		packet []byte
		length int // 0: that of packet
		want   wire.Segment
		skip   wire.Skip
	}{
		"raw":      {wire.LinkRaw, bin(t, ipv4Header, tcpHeader), 0, v4, wire.Taken},
		"ethernet": {wire.LinkEthernet, bin(t, ethernet, ipv4Header, tcpHeader), 0, v4, wire.Taken},
		"padded ethernet": {
			wire.LinkEthernet, bin(t, ethernet, ipv4Header, tcpHeader, "000000000000"), 0, v4, wire.Taken,
		},
		"vlan": {wire.LinkEthernet, bin(t, "020000000002020000000001 8100 0064 0800", ipv4Header, tcpHeader), 0, v4, wire.Taken},
		"vlan in vlan": {
			wire.LinkEthernet, bin(t, "020000000002020000000001 88a8 0064 8100 0065 0800", ipv4Header, tcpHeader), 0, v4, wire.Taken,
		},
		"cooked": {wire.LinkSLL, bin(t, "0004 0001 0006 020000000001 0000 0800", ipv4Header, tcpHeader), 0, v4, wire.Taken},
		"cooked v2": {
			wire.LinkSLL2, bin(t, "0800 0000 00000007 0001 04 06 0200000000010000", ipv4Header, tcpHeader), 0,
			with(v4, func(s *wire.Segment) { s.Interface = 7 }), wire.Taken,
		},
		"bsd loopback": {wire.LinkNull, bin(t, "02000000", ipv4Header, tcpHeader), 0, v4, wire.Taken},
		"ipv6":         {wire.LinkRaw, bin(t, ipv6Header, tcpHeader), 0, v6, wire.Taken},
		"ipv6 with options and a whole fragment": {
			wire.LinkRaw,
			bin(t, strings.Replace(ipv6Header, "0020 06", "0038 00", 1), "2c00010400000000", "3c00000000000001", "0600010400000000", tcpHeader), 0,
			v6, wire.Taken,
		},
		"data that was not captured": {
			wire.LinkRaw, bin(t, strings.Replace(ipv4Header, "0034", "0434", 1), tcpHeader), 0x434,
			with(v4, func(s *wire.Segment) { s.Payload = 1024 }), wire.Taken,
		},
		"more than the length field can tell": {
			wire.LinkRaw, bin(t, strings.Replace(ipv4Header, "0034", "0000", 1), tcpHeader), 100_052,
			with(v4, func(s *wire.Segment) { s.Payload = 100_000 }), wire.Taken,
		},
		"cut in the options": {wire.LinkRaw, bin(t, ipv4Header, tcpHeader)[:44], 52, v4, wire.Taken},

		"arp":              {wire.LinkEthernet, bin(t, "0200000000020200000000010806", "0001"), 0, wire.Segment{}, wire.NotTCP},
		"udp":              {wire.LinkRaw, bin(t, strings.Replace(ipv4Header, "4006", "4011", 1)), 0, wire.Segment{}, wire.NotTCP},
		"icmpv6":           {wire.LinkRaw, bin(t, strings.Replace(ipv6Header, "06 40", "3a 40", 1), "8000000000000000"), 0, wire.Segment{}, wire.NotTCP},
		"a later fragment": {wire.LinkRaw, bin(t, strings.Replace(ipv4Header, "4000", "2010", 1), tcpHeader), 0, wire.Segment{}, wire.Fragment},
		"a later fragment of ipv6": {
			wire.LinkRaw, bin(t, strings.Replace(ipv6Header, "06 40", "2c 40", 1), "0600001000000001", tcpHeader), 0, wire.Segment{}, wire.Fragment,
		},
		"nothing":               {wire.LinkRaw, nil, 0, wire.Segment{}, wire.Truncated},
		"cut in the tcp header": {wire.LinkRaw, bin(t, ipv4Header, tcpHeader)[:39], 52, wire.Segment{}, wire.Truncated},
		"a header of no length": {wire.LinkRaw, bin(t, strings.Replace(ipv4Header, "45", "44", 1), tcpHeader), 0, wire.Segment{}, wire.NotTCP},
		"a tcp header longer than its packet": {
			wire.LinkRaw, bin(t, ipv4Header, strings.Replace(tcpHeader, "8010", "f010", 1)), 0, wire.Segment{}, wire.NotTCP,
		},
		"token ring": {6, bin(t, ipv4Header), 0, wire.Segment{}, wire.UnknownLink},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.length == 0 {
				c.length = len(c.packet)
			}
			var s wire.Segment
			skip := wire.Parse(c.link, c.packet, c.length, &s)
			if skip != c.skip {
				t.Fatalf("skip %v, want %v", skip, c.skip)
			}
			if skip == wire.Taken && s != c.want {
				t.Errorf("got  %+v\nwant %+v", s, c.want)
			}
		})
	}
}

// Cut short at any length, a packet parses as soon as its TCP header is whole.
func TestParseCutShort(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		packet []byte
		header int
	}{{bin(t, ipv4Header, tcpHeader), 40}, {bin(t, ipv6Header, tcpHeader), 60}} {
		for n := range c.packet {
			var s wire.Segment
			want := wire.Truncated
			if n >= c.header {
				want = wire.Taken
			}
			if got := wire.Parse(wire.LinkRaw, c.packet[:n:n], len(c.packet), &s); got != want {
				t.Errorf("%d bytes of %d: %v, want %v", n, len(c.packet), got, want)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(uint16(wire.LinkRaw), bin(f, ipv4Header, tcpHeader), 52)
	f.Add(uint16(wire.LinkRaw), bin(f, ipv6Header, tcpHeader), 72)
	f.Add(uint16(wire.LinkEthernet), bin(f, "020000000002020000000001 8100 0064 0800", ipv4Header, tcpHeader), 70)
	f.Fuzz(func(t *testing.T, link uint16, b []byte, length int) {
		var s wire.Segment
		if wire.Parse(wire.Link(link), b, length, &s) == wire.Taken && !s.Src.IsValid() {
			t.Errorf("no address in %+v", s)
		}
	})
}

// pcap is a file of the old format with one probe a second.
func pcap(t testing.TB, packets int) []byte {
	t.Helper()
	b := bin(t, "d4c3b2a1 02000400 00000000 00000000 00000400 65000000")
	p := bin(t, ipv4Header, tcpHeader)
	for i := range packets {
		b = binary.LittleEndian.AppendUint32(b, uint32(start.Unix())+uint32(i))
		b = binary.LittleEndian.AppendUint32(b, 0)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(p)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	return b
}

func TestReader(t *testing.T) {
	t.Parallel()
	r, err := wire.NewReader(bytes.NewReader(pcap(t, 3)))
	ok(t, err)
	var times []time.Duration
	ok(t, r.Each(t.Context(), func(s *wire.Segment) error {
		times = append(times, s.Time.Sub(start))
		return nil
	}))
	if len(times) != 3 || times[2] != 2*time.Second {
		t.Errorf("segments at %v", times)
	}
	cut := pcap(t, 3)
	r, err = wire.NewReader(bytes.NewReader(cut[:len(cut)-10]))
	ok(t, err)
	if err := r.Each(t.Context(), func(*wire.Segment) error { return nil }); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file cut short: %v", err)
	}
	for name, bad := range map[string]string{"text": "hello, world", "nothing": "", "gzip": "\x1f\x8b\x08\x00"} {
		if _, err := wire.NewReader(strings.NewReader(bad)); err == nil || !strings.HasPrefix(err.Error(), "read capture: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add(pcap(f, 2))
	var out bytes.Buffer
	w, err := wire.NewWriter(&out)
	ok(f, err)
	ok(f, w.Write(&wire.Packet{Time: start, Protocol: 0x800, Data: bin(f, ipv4Header, tcpHeader), Length: 52}))
	ok(f, w.Flush())
	f.Add(out.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := wire.NewReader(bytes.NewReader(b))
		if err != nil {
			return
		}
		tracker := wire.NewTracker(wire.TrackerOptions{Flows: 4})
		_ = r.Each(t.Context(), func(s *wire.Segment) error {
			tracker.Feed(s, func(*wire.Event) {})
			return nil
		})
	})
}
