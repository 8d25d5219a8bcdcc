package engine

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// Those that the kernel would never give up can be selected, by BPF and
// without, to be listed and to be given a policy: they are blind no more then,
// but the ones that were changed.
func TestBlind(t *testing.T) {
	t.Parallel()
	for _, noBPF := range []bool{false, true} {
		t.Run(map[bool]string{false: "BPF", true: "without"}[noBPF], func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.engine.options.NoBPF = noBPF
			peers := w.connect("tcp4", w.near, 6)
			blind, seeing := peers[:3], peers[3:]
			for n, on := range [][]netip.AddrPort{blind, seeing} {
				for _, p := range on {
					setOpt(t, w.servers[p], unix.SOL_SOCKET, unix.SO_KEEPALIVE, n)
				}
			}
			scan := func(words string, want ...netip.AddrPort) {
				t.Helper()
				for _, streamed := range []bool{false, true} {
					var got []netip.AddrPort
					take := func(c *Connection) error { got = append(got, c.Sock.Peer()); return nil }
					if r := w.filtered(words); streamed {
						must(w.engine.Stream(t.Context(), r, take))(t)
					} else {
						for c := range must(w.engine.Scan(t.Context(), r))(t).All() {
							ok(t, take(c))
						}
					}
					slices.SortFunc(got, netip.AddrPort.Compare)
					slices.SortFunc(want, netip.AddrPort.Compare)
					if !slices.Equal(got, want) {
						t.Errorf("%s: %v, want %v", words, got, want)
					}
				}
			}
			scan("blind", slices.Clone(blind)...)
			scan("not blind", slices.Clone(seeing)...)
			scan("not blind or verdict = dead", slices.Clone(seeing)...)

			before := w.serverOptions()
			a := w.attach(w.filtered("blind"), minute())
			got := slices.Collect(maps.Keys(byPeer(a.Snapshot)))
			slices.SortFunc(got, netip.AddrPort.Compare)
			if slices.SortFunc(blind, netip.AddrPort.Compare); a.Changed != 3 || !slices.Equal(got, blind) {
				t.Errorf("attached to %d: %v, want %v", a.Changed, got, blind)
			}
			w.have(blind, minute(), before)
			scan("blind")
			w.detach()
			scan("blind", slices.Clone(blind)...)

			r := AttachRequest{Request: w.request(), Rules: []AttachRule{{Policy: minute(), Filter: w.filtered("blind").Filter}}}
			if a = must(w.engine.Attach(t.Context(), r))(t); a.Changed != 3 {
				t.Errorf("by a rule attached to %d", a.Changed)
			}
			w.have(blind, minute(), before)
		})
	}
}
