package cli

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"deadpeer/internal/engine"
	"deadpeer/internal/wire"
)

// A probe whose outcome did not come before the end is told, too.
func TestTraceTellsOfTheLastProbe(t *testing.T) {
	t.Parallel()
	us, peer, other := netip.MustParseAddrPort("10.0.0.1:3050"), netip.MustParseAddrPort("10.0.0.2:40112"), netip.MustParseAddrPort("10.0.0.3:40113")
	at := func(s float64) time.Time { return moment(s).Local() }
	var out strings.Builder
	lines := newTraceLines(&out)
	for _, e := range []wire.Event{
		{Kind: wire.Probe, Time: at(0), Local: us, Peer: peer, N: 1},
		{Kind: wire.Answer, Time: at(0.001), Local: us, Peer: peer, N: 1, About: wire.Probe, RTT: time.Millisecond, Sent: at(0)},
		{Kind: wire.Probe, Time: at(5), Local: us, Peer: other, N: 1},
		{Kind: wire.Reset, Time: at(5.001), Local: other, Peer: us, N: 1, About: wire.Probe, RTT: time.Millisecond, Sent: at(5)},
		{Kind: wire.WindowProbe, Time: at(10), Local: us, Peer: peer, N: 1},
	} {
		if err := lines.event(&engine.Traced{Event: &e}); err != nil {
			t.Fatal(err)
		}
	}
	if err := lines.end(); err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(out.String()), "\n")
	want := at(10).Format("15:04:05.000") + "  10.0.0.1:3050 → 10.0.0.2:40112  window probe 1, no answer before the trace ended"
	if len(got) != 3 || got[2] != want {
		t.Errorf("got\n%s\nwant at the end\n%s", out.String(), want)
	}
}
