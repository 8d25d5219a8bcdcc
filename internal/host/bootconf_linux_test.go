package host

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestBootCases(t *testing.T) {
	t.Parallel()
	for _, c := range bootCases() {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			for path, content := range c.files {
				w.write(path, content)
			}
			state, err := w.host().Show()
			ok(t, err)
			s, _ := state.Part(Idle)
			for by, got := range map[string]struct {
				p    *Persisted
				want int64
			}{state.Reader: {s.Persisted, c.systemd}, state.Other: {s.Second, c.procps}} {
				value := int64(0)
				if got.p != nil {
					value = got.p.Value
				}
				if value != got.want {
					t.Errorf("%s: %d, want %d", by, value, got.want)
				}
			}
			if s.Differs != (c.systemd != c.procps) {
				t.Errorf("differs: %v", s.Differs)
			}
			where := s.Persisted
			if where == nil {
				where = s.Second
			}
			if where != nil && where.Where() != c.where {
				t.Errorf("at %s, want %s", where.Where(), c.where)
			}
		})
	}
}

// The programs themselves come to the same values, in the cases above and in
// many that chance makes.
func TestReaders(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"/lib/systemd/systemd-sysctl", "/sbin/sysctl"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	cmd := process(t, role{Do: "readers"})
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET}
	in, err := cmd.StdinPipe()
	ok(t, err)
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	lines := bufio.NewScanner(out)
	random := rand.New(rand.NewPCG(1, 2))
	cases := bootCases()
	for range 150 {
		cases = append(cases, bootCase{name: "random", files: randomFiles(random)})
	}
	p := timeParameter()
	for _, c := range cases {
		b, err := json.Marshal(c.files)
		ok(t, err)
		_, err = fmt.Fprintf(in, "%s\n", b)
		ok(t, err)
		var got [2]int64
		if !lines.Scan() {
			t.Fatalf("%s: no answer", c.name)
		}
		if _, err := fmt.Sscan(lines.Text(), &got[0], &got[1]); err != nil {
			t.Fatalf("%s: %q", c.name, lines.Text())
		}
		w := newFiles(t, c.files)
		for i, r := range []reader{systemd, procps} {
			want := p.Default
			if won, ok := r.winner(p, w); ok {
				want = won.Value
			}
			if got[i] != want {
				t.Errorf("%s: %s makes it %d, we say %d: %q", c.name, r, got[i], want, c.files)
			}
		}
	}
	ok(t, in.Close())
	ok(t, cmd.Wait())
}

// newFiles reads files as a host would that has them.
func newFiles(t *testing.T, files map[string]string) []confFile {
	t.Helper()
	w := &world{t: t, root: t.TempDir()}
	for path, content := range files {
		w.write(path, content)
	}
	list, err := (&linux{root: w.root}).confFiles()
	ok(t, err)
	return list
}

func randomFiles(r *rand.Rand) map[string]string {
	keys := []string{timeKey, "net/ipv4/tcp_keepalive_time", "net.ipv4.tcp_keepalive_t*", "net.ipv4.tcp_keepalive_tim?", "net.*.tcp_keepalive_time"}
	files := map[string]string{}
	for range 1 + r.IntN(3) {
		name := []string{"/etc/sysctl.d/10.conf", "/etc/sysctl.d/20.conf", "/usr/lib/sysctl.d/15.conf", "/usr/lib/sysctl.d/20.conf", "/etc/sysctl.conf"}[r.IntN(5)]
		var b strings.Builder
		for range 1 + r.IntN(3) {
			line := keys[r.IntN(len(keys))]
			if r.IntN(4) == 0 {
				line = "-" + line
			}
			if r.IntN(5) > 0 {
				line += []string{"=", " = "}[r.IntN(2)] + []string{"x", "12x", "-", ""}[min(3, r.IntN(12))] + fmt.Sprint(10+r.IntN(20))
			}
			b.WriteString(line + "\n")
		}
		files[name] = b.String()
	}
	return files
}
