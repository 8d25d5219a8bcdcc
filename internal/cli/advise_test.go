package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"deadpeer/internal/advise"
	"deadpeer/keepalive"
)

// What a survey says of programs with every kind of trouble, and of one with
// none. The transcripts have no servers whose configuration is read.
func TestAdviseText(t *testing.T) {
	t.Parallel()
	policy := keepalive.Policy{Idle: time.Minute, Interval: 10 * time.Second, Probes: 6, UserTimeout: -1}
	program := func(id string, p advise.Program) advise.Program {
		s, err := advise.ByName(id)
		if err != nil {
			t.Fatal(err)
		}
		made, err := s.Render(policy)
		if err != nil {
			t.Fatal(err)
		}
		p.Software, p.Advice = &s, made
		return p
	}
	log, err := advise.ReadLog(t.Context(), strings.NewReader("srv\tMon Nov 14 10:00:00 2005\n\tINET/inet_error: read errno = 104\n"))
	if err != nil {
		t.Fatal(err)
	}
	v := &advice{Policy: policy, Log: &logged{"/var/log/firebird.log", log, log.Advise(0)}, Report: &advise.Report{Programs: []advise.Program{
		program("redis", advise.Program{
			Name: "redis-server", PID: 7, Unit: "redis-server.service", Connections: 14, Slow: 12, Worst: 10 * time.Minute, Compared: 14, Differ: 12, Mend: true,
			Config: &advise.Config{
				Files: []string{"/etc/redis/redis.conf"}, Within: 2 * time.Minute,
				Settings: []advise.Setting{{Key: "tcp-keepalive", Value: "60", File: "/etc/redis/redis.conf", Line: 176}},
			},
		}),
		program("firebird", advise.Program{
			Name: "firebird", PID: 8, Connections: 1, Slow: 1, Worst: 7875 * time.Second, Mend: true,
			Config: &advise.Config{Files: []string{"/f"}, Harmful: []string{"DummyPacketInterval = 60 defeats keepalive: comment it out"}},
		}),
		{Name: "daemon", Connections: 3, Blind: 2, Slow: 1, Worst: time.Hour, Mend: true},
		{Name: `it's`, Connections: 1, Blind: 1, Mend: true},
		{Name: "calm", Connections: 2, Worst: 80 * time.Second},
		program("sshd", advise.Program{
			Name: "sshd", PID: 9, Connections: 1, Slow: 1, Worst: 7875 * time.Second, Config: &advise.Config{Within: 45 * time.Second, Asks: true},
		}),
		{Connections: 2, Unknown: 2},
	}}}
	var out bytes.Buffer
	a := &app{stdout: &out}
	if err := a.adviseText(v); err != nil {
		t.Fatal(err)
	}
	const want = `60s idle, then 6 probes 10s apart (profile k8s, the default): a vanished peer is given up after 2m

Redis [7]  14 connections, 12 slow (up to 10m)
  now   tcp-keepalive = 60   (/etc/redis/redis.conf:176)
  open  12 of 14 connections have other settings than that: made before it was
        set, or it is not loaded
  then  the configuration is right already; load it, and let the open
        connections be renewed, or:
        deadpeer attach --idle 60s --interval 10s --probes 6 --new --unit redis-server.service

Firebird [8]  1 connection, 1 slow (up to 2h11m)
  now   nothing of it is set in /f
  bad   DummyPacketInterval = 60 defeats keepalive: comment it out
  log   /var/log/firebird.log: 1 entry, 2005-11-14 to 2005-11-14
        resets (104, 10054) 1, timeouts (110, 10060) 0, NetBEUI (108, 109) 0
        (client not named)   resets 1, timeouts 0, NetBEUI 0
  take  5m idle, then 5 probes 10s apart: a vanished peer is given up after
        5m50s
  why   1 broken connections a day (1 to 10): a short idle time
  why   longest transaction not known (--longest-transaction): not considered
  file  /etc/sysctl.d/90-keepalive.conf (Linux; Firebird takes the host's
        values)
  put   net.ipv4.tcp_keepalive_time = 60
        net.ipv4.tcp_keepalive_intvl = 10
        net.ipv4.tcp_keepalive_probes = 6
  then  deadpeer tune set --idle 60s --interval 10s --probes 6   # writes such a file and the live values; or: sysctl --system
  then  deadpeer attach --idle 60s --interval 10s --probes 6 --new 'sport = :3050'   # or: Firebird's sockets only, open and new
  note  Firebird has no keepalive values of its own. It sets SO_KEEPALIVE on
        every connection since 1.5, Classic and SuperServer alike.
  more  deadpeer advise --software firebird

daemon  3 connections, 2 blind, 1 slow (up to 1h)
  put   in its own settings or code: SO_KEEPALIVE 1, TCP_KEEPIDLE 60,
        TCP_KEEPINTVL 10, TCP_KEEPCNT 6
  or    deadpeer attach --idle 60s --interval 10s --probes 6 'comm = daemon'   # its open sockets
  or    deadpeer tune set --idle 60s --interval 10s --probes 6   # the host's defaults, for sockets with SO_KEEPALIVE on

it's  1 connection, 1 blind
  put   in its own settings or code: SO_KEEPALIVE 1, TCP_KEEPIDLE 60,
        TCP_KEEPINTVL 10, TCP_KEEPCNT 6
  or    deadpeer attach --idle 60s --interval 10s --probes 6 'comm = NAME'   # its open sockets

calm  2 connections: all given up within 80s
OpenSSH server [9]  1 connection, 1 slow (up to 2h11m): asks its peers itself, gone after 45s
(owner not known)  2 connections, 2 with unknown settings: more is seen as root
`
	if got := out.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// A name is somebody else's: it selects nothing more in the command that is
// advised.
func TestAttachCommand(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"postgres": "'comm = postgres'", "kworker/0:1": "'comm = kworker/0:1'",
		"(sd-pam)": `'comm = "(sd-pam)"'`, "a||uid=0": `'comm = "a||uid=0"'`, "x or y": `'comm = "x or y"'`, "é": "'comm = é'",
		"it's": "'comm = NAME'", "*": "'comm = NAME'", `a"b`: "'comm = NAME'", `\x1b`: "'comm = NAME'",
	} {
		got := attachCommand(&advice{}, &advise.Program{Name: name})
		if !strings.HasSuffix(got, " --probes 0 "+want) {
			t.Errorf("%q: %s", name, got)
		}
	}
	for unit, want := range map[string]string{
		"getty@tty1.service": "--new --unit getty@tty1.service", `a\x2db.service`: "'comm = x'", "a*.service": "'comm = x'", "session-1.scope": "'comm = x'",
	} {
		got := attachCommand(&advice{}, &advise.Program{Name: "x", Unit: unit})
		if !strings.HasSuffix(got, " --probes 0 "+want) {
			t.Errorf("%q: %s", unit, got)
		}
	}
}
