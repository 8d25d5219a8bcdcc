package testnet

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"deadpeer/internal/wire"
)

func TestRecord(t *testing.T) {
	a, b, l := pair(t)
	families(t, func(t *testing.T, address func(*Link, *Host) netip.Addr) {
		ctx, cancel := context.WithTimeout(t.Context(), patient)
		defer cancel()
		rec := must(l.Record())(t)
		before := time.Now()
		s := connect(t, a, b, address(l, b))
		crosses(t, s.client, s.server)
		data := must(rec.Wait(ctx, func(s Segment) bool { return s.Payload > 0 }))(t)
		if data.From != a || data.Payload != 5 || !data.Flags.Has(wire.PSH|wire.ACK) ||
			data.Src.String() != s.client.LocalAddr().String() || data.Dst.String() != s.listener.Addr().String() {
			t.Errorf("data: %v", data)
		}
		segments := rec.Segments()
		if len(segments) < 4 {
			t.Fatalf("%v", segments)
		}
		syn, synAck, ack := segments[0], segments[1], segments[2]
		if syn.From != a || syn.Flags&^0xc0 != wire.SYN || synAck.From != b || !synAck.Flags.Has(wire.SYN|wire.ACK) ||
			synAck.Ack != syn.Seq+1 || ack.From != a || data.Seq != syn.Seq+1 {
			t.Errorf("handshake:\n%v\n%v\n%v\n%v", syn, synAck, ack, data)
		}
		const clockSlack = time.Second
		for _, s := range segments {
			if s.Time.Before(before.Add(-clockSlack)) || s.Time.After(time.Now().Add(clockSlack)) {
				t.Errorf("time of %v", s)
			}
		}

		check(t, l.Cut())
		defer func() { check(t, l.Heal()) }()
		must(s.server.Write([]byte("lost")))(t)
		lost := must(rec.Wait(ctx, func(s Segment) bool { return s.Payload == 4 }))(t)
		if lost.From != b {
			t.Errorf("dropped by the link: %v", lost)
		}
		check(t, errors.Join(rec.Close(), rec.Close()))
		if _, err := rec.Wait(ctx, func(s Segment) bool { return s.Payload == 99 }); !errors.Is(err, os.ErrClosed) {
			t.Errorf("wait after close: %v", err)
		}
		if len(rec.Segments()) < len(segments) {
			t.Error("segments gone after close")
		}
	})
}

func TestRecordWaitEnds(t *testing.T) {
	_, _, l := pair(t)
	rec := must(l.Record())(t)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := rec.Wait(ctx, func(Segment) bool { return false }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	time.AfterFunc(20*time.Millisecond, func() { _ = rec.Close() })
	if _, err := rec.Wait(t.Context(), func(Segment) bool { return false }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
