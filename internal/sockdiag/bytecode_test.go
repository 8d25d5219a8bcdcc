package sockdiag

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"deadpeer/internal/conn"
)

func TestCompileLayout(t *testing.T) {
	host16 := func(b ...byte) []byte { return b }
	half := func(v uint16) []byte { return binary.NativeEndian.AppendUint16(nil, v) }
	word := func(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
	tests := []struct {
		name string
		k    *conn.KernelFilter
		want [][]byte
	}{
		{"nothing", nil, nil},
		{"port at least", &conn.KernelFilter{Op: conn.KernelPortAtLeast, Port: 1024},
			[][]byte{{bcLocalAtL, 8}, half(12), {0, 0}, half(1024)}},
		{"negated peer host", &conn.KernelFilter{Op: conn.KernelHost, Not: true, Peer: true, Port: 443, Host: netip.MustParsePrefix("10.0.0.0/8")},
			[][]byte{{bcPeerHost, 16}, half(20), host16(afINET, 8, 0, 0), word(443), {10, 0, 0, 0}, {bcJump, 4}, half(8)}},
		{"either interface", &conn.KernelFilter{Op: conn.KernelAny, Kids: []conn.KernelFilter{{Op: conn.KernelDev, Value: 1}, {Op: conn.KernelDev, Value: 2}}},
			[][]byte{{bcDev, 8}, half(12), word(1), {bcJump, 4}, half(12), {bcDev, 8}, half(12), word(2)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := compile(tt.k)
			if err != nil || !bytes.Equal(got, bytes.Join(tt.want, nil)) {
				t.Errorf("got %x, %v, want %x", got, err, bytes.Join(tt.want, nil))
			}
		})
	}
}

func TestCompileRefusesNonsense(t *testing.T) {
	for _, k := range []conn.KernelFilter{
		{Op: conn.KernelHost, Port: 65536},
		{Op: conn.KernelPortAtMost, Port: -1},
		{Op: 99},
		{Op: conn.KernelAny, Kids: []conn.KernelFilter{{Op: conn.KernelDev}, {Op: 99}}},
	} {
		if code, err := compile(&k); err == nil {
			t.Errorf("%+v compiled to %x", k, code)
		}
	}
}

func TestCompileDropsWhatIsTooLong(t *testing.T) {
	kids := make([]conn.KernelFilter, 6000)
	for i := range kids {
		kids[i] = conn.KernelFilter{Op: conn.KernelDev, Value: uint64(i)}
	}
	for _, tt := range []struct {
		n    int
		none bool
	}{{5000, false}, {6000, true}} {
		code, err := compile(&conn.KernelFilter{Op: conn.KernelAny, Kids: kids[:tt.n]})
		if err != nil || (code == nil) != tt.none {
			t.Errorf("%d alternatives: %d bytes, %v", tt.n, len(code), err)
		}
	}
}
