package sockdiag

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"deadpeer/internal/conn"
)

// attribute appends one netlink attribute to b.
func attribute(b []byte, kind uint16, value []byte) []byte {
	b = native.AppendUint16(b, uint16(attrLen+len(value)))
	b = native.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, align(len(value))-len(value))...)
}

// message is an inet_diag_msg of 10.0.0.1:5432 to 10.0.0.9:40112.
func message() []byte {
	b := make([]byte, diagLen)
	b[0], b[1], b[2], b[3] = afINET, byte(conn.Established), byte(conn.TimerKeepalive), 2
	binary.BigEndian.PutUint16(b[4:], 5432)
	binary.BigEndian.PutUint16(b[6:], 40112)
	copy(b[8:], []byte{10, 0, 0, 1})
	copy(b[24:], []byte{10, 0, 0, 9})
	native.PutUint32(b[40:], 3)
	native.PutUint64(b[44:], 0x1122334455667788)
	native.PutUint32(b[52:], 5031)
	native.PutUint32(b[56:], 7)
	native.PutUint32(b[60:], 8)
	native.PutUint32(b[64:], 1000)
	native.PutUint32(b[68:], 4711)
	return b
}

func info(n int) []byte {
	v := make([]byte, n)
	v[3], v[4] = 1, 2
	put := func(at int, x uint32) {
		if at+4 <= n {
			native.PutUint32(v[at:], x)
		}
	}
	put(8, 204000)
	put(24, 9)
	put(44, 100)
	put(52, 200)
	put(56, 150)
	put(68, 311)
	put(72, 40)
	put(136, 55)
	put(infoSegsIn, 66)
	put(infoSndWnd, 65535)
	return v
}

func TestParse(t *testing.T) {
	b := attribute(message(), attrInfo, info(248))
	b = attribute(b, attrMemory, bytes.Repeat([]byte{1, 0, 0, 0}, 9))
	b = attribute(b, attrMark, []byte{5, 0, 0, 0})
	b = attribute(b, attrCgroup, []byte{6, 0, 0, 0, 0, 0, 0, 0})
	b = attribute(b, attrULP, attribute(nil, ulpName, []byte("mptcp\x00")))
	s, m := conn.Sock{NetNS: 42}, Memory{}
	if err := parse(b, &s, &m); err != nil {
		t.Fatal(err)
	}
	if got, want := s.Local().String()+" "+s.Peer().String(), "10.0.0.1:5432 10.0.0.9:40112"; got != want {
		t.Errorf("addresses %s, want %s", got, want)
	}
	want := conn.Sock{
		Cookie: 0x1122334455667788, CgroupID: 6, LocalIP: s.LocalIP, PeerIP: s.PeerIP, LocalPort: 5432, PeerPort: 40112,
		Family: conn.IPv4, State: conn.Established, Timer: conn.TimerKeepalive, Retransmits: 2, NetNS: 42, Inode: 4711,
		UID: 1000, Interface: 3, Mark: 5, RecvQueue: 7, SendQueue: 8, TimerMS: 5031, RTOUS: 204000, RTTUS: 311, RTTVarUS: 40,
		LastDataSent: 100, LastDataRecv: 200, LastAckRecv: 150, SegsIn: 66, SegsOut: 55, Unacked: 9, SendWindow: 65535,
		Probes: 1, Backoff: 2, HasInfo: true, HasWindow: true, MPTCP: true,
	}
	if s != want {
		t.Errorf("got  %+v\nwant %+v", s, want)
	}
	if m.Drops != 1 || m.ReceiveAllocated != 1 {
		t.Errorf("memory %+v", m)
	}
}

func TestParseOldKernel(t *testing.T) {
	for _, c := range []struct {
		n                  int
		hasInfo, hasWindow bool
	}{{infoSegsIn, false, false}, {infoSegsIn + 4, true, false}, {infoSndWnd + 4, true, true}} {
		var s conn.Sock
		if err := parse(attribute(message(), attrInfo, info(c.n)), &s, nil); err != nil {
			t.Fatal(err)
		}
		if s.HasInfo != c.hasInfo || s.HasWindow != c.hasWindow {
			t.Errorf("tcp_info of %d bytes: HasInfo %v, HasWindow %v", c.n, s.HasInfo, s.HasWindow)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	truncated := message()[:diagLen-1]
	family := message()
	family[0] = 1
	long := append(message(), 200, 0, 2, 0)
	short := append(message(), 3, 0, 2, 0)
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"truncated": {truncated, "want at least 72"},
		"family":    {family, "address family 1"},
		"long":      {long, "attribute of 200 bytes"},
		"short":     {short, "attribute of 3 bytes"},
	} {
		var s conn.Sock
		if err := parse(c.b, &s, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(message())
	f.Add(attribute(message(), attrInfo, info(248)))
	f.Add(attribute(message(), attrULP, attribute(nil, ulpName, []byte("tls\x00"))))
	f.Add(message()[:71])
	f.Fuzz(func(_ *testing.T, b []byte) {
		var s conn.Sock
		var m Memory
		if parse(b, &s, &m) == nil {
			_, _ = s.Local().String(), s.State.String()
		}
		for rest := b; len(rest) > 0; {
			h, after, err := next(rest)
			if err != nil {
				break
			}
			_ = status(h.body)
			rest = after
		}
	})
}
