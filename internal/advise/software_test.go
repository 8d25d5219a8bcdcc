package advise

import (
	"strings"
	"testing"
	"time"

	"deadpeer/keepalive"
)

func entries(t testing.TB) []Software {
	t.Helper()
	list, err := List()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestEntries(t *testing.T) {
	t.Parallel()
	claimed := map[string]string{}
	for _, s := range entries(t) {
		for _, comm := range s.Comm {
			if other := claimed[comm]; other != "" {
				t.Errorf("%s and %s both claim %s", s.ID, other, comm)
			}
			claimed[comm] = s.ID
			if len(comm) > 15 {
				t.Errorf("%s: the kernel cuts the name %s after 15 bytes", s.ID, comm)
			}
		}
		for _, source := range s.Source {
			if !strings.HasPrefix(source, "https://") {
				t.Errorf("%s: source %s is no address", s.ID, source)
			}
		}
		for _, k := range s.Keys {
			if k.Name == "" || k.Meaning == "" {
				t.Errorf("%s: key without name or meaning: %+v", s.ID, k)
			}
		}
		if found, err := ByName(strings.ToUpper(s.ID)); err != nil || found.ID != s.ID {
			t.Errorf("ByName(%s) = %s, %v", s.ID, found.ID, err)
		}
	}
	for comm, want := range map[string]string{
		"postgres": "postgresql", "firebird": "firebird", "python3.11": "python", "oracle_77_orcl": "oracle", "sshd": "sshd", "ssh": "openssh-client",
	} {
		if got := recognise(entries(t), comm); got == nil || got.ID != want {
			t.Errorf("%s is taken for %v", comm, got)
		}
	}
	if got := recognise(entries(t), "mydaemon"); got != nil {
		t.Errorf("mydaemon is taken for %s", got.ID)
	}
}

func TestByNameSuggests(t *testing.T) {
	t.Parallel()
	_, err := ByName("postgersql")
	if err == nil || !strings.Contains(err.Error(), "did you mean postgresql?") || !strings.Contains(err.Error(), "haproxy") {
		t.Errorf("%v", err)
	}
}

func TestBadEntriesAreRefused(t *testing.T) {
	t.Parallel()
	const good = "- {id: x, name: X, role: server, example: a, apply: [b], source: [c]}\n"
	if _, err := parse([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		strings.Replace(good, "role", "rolle", 1):                               "rolle",
		strings.Replace(good, "server", "servant", 1):                           `role "servant"`,
		strings.Replace(good, ", source: [c]", "", 1):                           "source is missing",
		strings.Replace(good, "id: x", `id: ""`, 1):                             "id is missing",
		strings.Replace(good, "id: x", "id: x, comm: ['[']", 1):                 "syntax error in pattern",
		strings.Replace(good, "id: x", "id: x, keys: [{name: k, unit: us}]", 1): `unit "us"`,
		strings.Replace(good, "id: x", "id: x, keys: [{name: k, part: p}]", 1):  `part "p"`,
		good + good:           "twice",
		good + "---\n" + good: "more than one document",
	} {
		if _, err := parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// policies are all that the tests render.
func policies(t *testing.T) map[string]keepalive.Policy {
	t.Helper()
	list := map[string]keepalive.Policy{}
	for _, p := range keepalive.Profiles() {
		list[p.Name] = p.Policy
	}
	for _, d := range []time.Duration{keepalive.LeastWithin, 90 * time.Second, time.Hour, keepalive.MostWithin} {
		p, err := keepalive.Within(d)
		if err != nil {
			t.Fatal(err)
		}
		list[d.String()] = p
	}
	return list
}

func TestEveryEntryRenders(t *testing.T) {
	t.Parallel()
	for name, p := range policies(t) {
		for _, s := range entries(t) {
			a, err := s.Render(p)
			if err != nil {
				t.Errorf("%s for %s: %v", s.ID, name, err)
				continue
			}
			for _, text := range append(a.Apply, a.Example) {
				if strings.TrimSpace(text) == "" || strings.Contains(text, "{{") || strings.Contains(text, "<no value>") || strings.Contains(text, "-1") {
					t.Errorf("%s for %s: %q", s.ID, name, text)
				}
			}
			if !strings.HasSuffix(a.Example, "\n") {
				t.Errorf("%s: %q does not end its line", s.ID, a.Example)
			}
		}
	}
}

func TestUnits(t *testing.T) {
	t.Parallel()
	p := keepalive.Policy{Idle: 90*time.Second + time.Millisecond, Interval: 10 * time.Second, Probes: 6, UserTimeout: 151500 * time.Millisecond}
	for id, want := range map[string]string{
		"postgresql": "tcp_keepalives_idle = 91\ntcp_keepalives_interval = 10\ntcp_keepalives_count = 6\ntcp_user_timeout = 151500\n",
		"oracle":     "SQLNET.EXPIRE_TIME = 2\n", // minutes
		"node":       "setKeepAlive(true, 91000)",
		"nginx":      "so_keepalive=91s:10s:6;",
		"grpc":       "GRPC_ARG_KEEPALIVE_TIMEOUT_MS = 60000\n",
	} {
		s, err := ByName(id)
		if err != nil {
			t.Fatal(err)
		}
		if a, err := s.Render(p); err != nil || !strings.Contains(a.Example, want) {
			t.Errorf("%s: %q, %v", id, a.Example, err)
		}
	}
	p.UserTimeout = -1 // leave it alone: nothing to say
	s, err := ByName("postgresql")
	if err != nil {
		t.Fatal(err)
	}
	if a, err := s.Render(p); err != nil || strings.Contains(a.Example, "user_timeout") {
		t.Errorf("%q, %v", a.Example, err)
	}
	for _, bad := range []keepalive.Policy{{}, {Idle: time.Second, Interval: time.Second}, {Idle: 40000 * time.Second, Interval: time.Second, Probes: 1}} {
		if a, err := s.Render(bad); err == nil {
			t.Errorf("%+v gives %q", bad, a.Example)
		}
	}
}

// Redis gives up after idle N and three probes N/3 apart, OpenSSH after three
// unanswered questions: both are done by the policy's time at the latest.
func TestOneNumberForAllOfIt(t *testing.T) {
	t.Parallel()
	for name, p := range policies(t) {
		f := figures(p)
		total := int64((p.Idle + time.Duration(p.Probes)*p.Interval) / time.Second)
		if n := f[".HalfDetection"].(int64); n+3*(n/3) > total || n < total/2-1 {
			t.Errorf("%s: Redis with %d takes %d of %d s", name, n, n+3*(n/3), total)
		}
		if n := f[".ThirdDetection"].(int64); 3*n > total || n < total/3-1 {
			t.Errorf("%s: OpenSSH with %d of %d s", name, n, total)
		}
	}
}
