package databases

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkRelease measures how long a row stays locked by a client whose link
// was cut, in each way out, and prints the table of README.md.
func BenchmarkRelease(b *testing.B) {
	fmt.Printf("| | %s | %s | %s |\n| --- | --- | --- | --- |\n", "Firebird 3.0", "PostgreSQL 15", "MariaDB 10.11")
	var cells [4][]string
	for _, name := range []string{"Firebird", "PostgreSQL", "MariaDB"} {
		w := newWorld(b, engines()[name])
		killed, cut := w.phantom("killed", 0), w.phantom("cut", 1)
		waits, waitsForCut := w.update(0), w.update(1)
		time.Sleep(time.Second) // until they wait
		cells[0] = append(cells[0], w.measure(killed, waits, "--via", "database"))
		cells[1] = append(cells[1], w.measure(cut, waitsForCut, "--via", "socket"))

		for name, value := range map[string]string{"time": "5", "intvl": "2", "probes": "3"} {
			ok(b, w.host.SetSysctl("net.ipv4.tcp_keepalive_"+name, value))
		}
		old := w.phantom("old", 2)
		waits = w.update(2)
		ok(b, old.link.Cut())
		start := time.Now()
		cells[2] = append(cells[2], fmt.Sprintf("%.1f s", waits.within(b, time.Minute).Sub(start).Seconds()))

		for name, value := range map[string]string{"time": "7200", "intvl": "75", "probes": "9"} {
			ok(b, w.host.SetSysctl("net.ipv4.tcp_keepalive_"+name, value))
		}
		left := w.phantom("left", 3)
		waits = w.update(3)
		ok(b, left.link.Cut())
		time.Sleep(time.Minute)
		if waits.got() {
			b.Fatal("the defaults let it go within a minute")
		}
		cells[3] = append(cells[3], "over 60 s")
	}
	for i, what := range []string{
		"`release --silence 3s --via database`", "`release --silence 3s --via socket`", "keepalive 5/2/3 (idle, interval, probes) set before the client came", "the host's defaults (7200/75/9)",
	} {
		fmt.Printf("| %s | %s | %s | %s |\n", what, cells[i][0], cells[i][1], cells[i][2])
	}
}

// measure cuts a phantom off, releases it, and says how long after the cut
// the next client had its row.
func (w *world) measure(p *phantom, u *update, via ...string) string {
	w.t.Helper()
	ok(w.t, p.link.Cut())
	start := time.Now()
	r := w.deadpeer(append([]string{"release", "--yes", "--silence", "3s", "--db", w.secretFile(boss, bossPassword), "-o", "jsonl", "dst", p.addr.String()}, via...)...)
	if o := r.lines(w.t)[p.addr].Outcome; o == nil || !o.Done {
		w.t.Fatalf("%+v: %s", o, r.stderr)
	}
	return fmt.Sprintf("%.1f s", u.within(w.t, time.Minute).Sub(start).Seconds())
}
