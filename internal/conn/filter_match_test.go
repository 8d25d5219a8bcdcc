package conn

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func mapped(s string) [16]byte { return netip.MustParseAddr(s).As16() }

func TestFilterMatch(t *testing.T) {
	v4 := &Sock{
		Family: IPv4, State: Established, LocalIP: mapped("10.0.0.1"), LocalPort: 5432, PeerIP: mapped("10.0.0.9"), PeerPort: 40112,
		Cookie: 9, Inode: 5, UID: 33, NetNS: 7, Mark: 0x12, Interface: 2, CgroupID: 77, SendQueue: 3, Timer: TimerKeepalive,
		HasInfo: true, LastDataRecv: 900_000, LastAckRecv: 700_000, LastDataSent: 5000, RTTUS: 1500,
	}
	viaV6 := &Sock{Family: IPv6, State: Established, LocalIP: mapped("10.0.0.1"), PeerIP: mapped("10.0.0.9"), CgroupID: 1}
	v6 := &Sock{Family: IPv6, State: Established, LocalIP: mapped("2001:db8::1"), PeerIP: mapped("::1")}
	waiting := &Sock{Family: IPv4, State: TimeWait, LocalIP: mapped("10.0.0.1"), Timer: TimerTimeWait}
	listening := &Sock{Family: IPv4, State: Listen, LocalPort: 80}
	tests := []struct {
		filter string
		sock   *Sock
		want   Truth
	}{
		{"", v4, Yes}, {"", waiting, No}, {"", listening, No},
		{"state time-wait", waiting, Yes},
		{"not state established", waiting, No}, // hidden unless named
		{"sport = 1 or state time-wait", waiting, Yes},
		{"timer = time-wait", waiting, Yes},
		{"( state listening ) and sport = 80", listening, Yes},
		{"exclude established", listening, Yes},
		{"state established and ( sport = :5432 or dst 192.168.0.0/16 )", v4, Yes},
		{"sport = 1 or sport = 5432 and dport = 1", v4, No},
		{"dport = 40112 or sport = 1 and dport = 1", v4, Yes},
		{"dst 10.0.0.0/8", v4, Yes}, {"dst 10.0.0.0/8", viaV6, Yes}, {"dst 10.0.0.0/8", v6, No},
		{"dst ::/0", v4, No}, {"dst ::/0", viaV6, Yes}, {"dst inet:*", viaV6, Yes},
		{"dst ::ffff:10.0.0.9", v4, No}, {"dst ::ffff:10.0.0.9", viaV6, Yes},
		{"dst 10.0.0.9:40112", v4, Yes}, {"dst 10.0.0.9:1", v4, No}, {"dst != *:1", v4, Yes},
		{"src 2001:db8::/32", v6, Yes}, {"src 2001:db9::/32", v6, No},
		{"sport >= 5432 sport <= 5432 sport > 5431 sport < 5433", v4, Yes},
		{"family = ipv4", v4, Yes}, {"family = ipv4", viaV6, No}, {"family != inet6", v6, No},
		{"dev = 2 fwmark = 0x2/0x3 mark = 0x12 mark > 0x11", v4, Yes}, {"fwmark = 0x12/0x3", v4, No},
		{"blind", v4, Maybe}, {"not blind", v4, Maybe}, {"blind or sport > 0", v4, Yes},
		{"autobound", v4, No}, {"dport > 1 and not autobound", v4, Yes},
		{"cgroup = /system.slice", v4, Yes}, {"cgroup != 77", viaV6, Yes},
		{"cgroup != 77", v6, Maybe}, // the kernel did not tell
		{"state time-wait cgroup != 77", waiting, Yes},
		{"heard >= 700s heard <= 700s sent = 5s rtt = 1500us", v4, Yes},
		{"heard > 10m", v6, Maybe}, {"not heard > 10m", v6, Maybe},
		{"uid = 33 inode != 6 cookie < 10 netns >= 7 send-q > 2 recv-q = 0 timer != none", v4, Yes},
	}
	for _, tt := range tests {
		if got := parse(t, tt.filter).Match(&Subject{Sock: tt.sock}); got != tt.want {
			t.Errorf("%s on %v %v: got %v, want %v", tt.filter, tt.sock.State, tt.sock.Peer(), got, tt.want)
		}
		if !parse(t, tt.filter).States().Has(tt.sock.State) && tt.want != No {
			t.Errorf("%s: States leaves out %v", tt.filter, tt.sock.State)
		}
	}
}

func TestFilterMatchOwners(t *testing.T) {
	processes := func(pid int32) *Process {
		switch pid {
		case 42:
			return &Process{Comm: "postgres", Unit: "postgresql.service"}
		case 43:
			return &Process{Comm: "worker", Container: "abcdef"}
		}
		return nil
	}
	subject := func(known bool, pids ...int32) Subject {
		s := Subject{Sock: &Sock{State: Established}, OwnersKnown: known, Process: processes}
		for _, pid := range pids {
			s.Owners = append(s.Owners, Owner{PID: pid})
		}
		return s
	}
	judged := subject(true, 42)
	judged.Judged, judged.Verdict = true, Dead
	bare := subject(true, 42)
	bare.Process = nil
	tests := []struct {
		filter  string
		subject Subject
		want    Truth
	}{
		{"pid = 42", subject(false), Maybe},
		{"pid = 42", subject(false, 42), Yes},
		{"pid = 42", subject(true, 43), No},
		{"pid != 42", subject(true, 42, 43), No}, // no owner may be 42
		{"pid != 42", subject(false, 43), Maybe},
		{"pid > 42", subject(true, 42, 43), Yes},
		{"comm = post*", subject(true, 42), Yes},
		{"comm != post*", subject(true, 43, 42), No},
		{"comm = post*", subject(true, 99), Maybe},
		{"comm = post*", bare, Maybe},
		{"comm = post*", subject(true), No},
		{`unit = ""`, subject(true, 43), Yes},
		{"unit = postgresql.service and container = abc*", subject(true, 42, 43), Yes},
		{"verdict = dead", subject(true), Maybe},
		{"verdict != dead", subject(true), Maybe},
		{"verdict = dead", judged, Yes},
		{"verdict = dead and sport = 9", subject(false), No},
		{"verdict = dead or sport = 0", subject(false), Yes},
		{"verdict = dead or pid = 42", subject(false), Maybe},
		{"not ( verdict = dead and pid = 42 )", subject(false), Maybe},
	}
	for _, tt := range tests {
		if got := parse(t, tt.filter).Match(&tt.subject); got != tt.want {
			t.Errorf("%s on %v: got %v, want %v", tt.filter, tt.subject.Owners, got, tt.want)
		}
	}
}

func TestFilterMatchAllocatesNothing(t *testing.T) {
	f := parse(t, "state established dst 10.0.0.0/8 sport >= 1 comm = p*s unit != x heard > 1s not pid = 1 verdict = dead")
	proc := &Process{Comm: "postgres"}
	s := &Subject{
		Sock:   &Sock{Family: IPv4, State: Established, PeerIP: mapped("10.0.0.9"), LocalPort: 1, HasInfo: true, LastAckRecv: 5000, LastDataRecv: 5000},
		Owners: []Owner{{PID: 2}}, OwnersKnown: true, Process: func(int32) *Process { return proc },
	}
	if got := f.Match(s); got != Maybe {
		t.Fatalf("got %v, want maybe", got)
	}
	if n := testing.AllocsPerRun(100, func() { f.Match(s) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestFilterNeeds(t *testing.T) {
	tests := []struct {
		filter          string
		owners, verdict bool
		names           bool // cookie 7
	}{
		{"", false, false, false},
		{"cookie = 7", false, false, true},
		{"cookie = 8", false, false, false},
		{"not cookie = 7", false, false, false},
		{"cookie != 7", false, false, false},
		{"not cookie != 7", false, false, true},
		{"cookie >= 7", false, false, false},
		{"cookie = 7 and ( pid = 1 or verdict = dead )", true, true, true},
		{"cookie = 7 or sport = 1", false, false, false},
		{"cookie = 7 or cookie = 8", false, false, true},
		{"cookie = 7 and sport = 1 or cookie = 8", false, false, true},
		{"cookie = 7 comm = a or cookie = 7 and unit = b", true, false, true},
		{"not ( cookie != 7 or verdict = dead )", false, true, true},
		{"not ( cookie = 7 and sport = 1 )", false, false, false},
		{"container = x", true, false, false},
	}
	for _, tt := range tests {
		f := parse(t, tt.filter)
		if f.NamesVerdict(Dead) != (tt.verdict && !strings.HasPrefix(tt.filter, "not")) || f.NamesVerdict(Suspect) {
			t.Errorf("%s: names dead %v, suspect %v", tt.filter, f.NamesVerdict(Dead), f.NamesVerdict(Suspect))
		}
		if f.NeedsOwners() != tt.owners || f.NeedsVerdict() != tt.verdict || f.Names(7) != tt.names {
			t.Errorf("%s: owners %v, verdict %v, names %v", tt.filter, f.NeedsOwners(), f.NeedsVerdict(), f.Names(7))
		}
	}
}

func TestFilterStates(t *testing.T) {
	tests := []struct {
		filter string
		want   States
	}{
		{"sport = 1", defaultStates},
		{"state established and sport = 1", 1 << Established},
		{"not state established", defaultStates &^ (1 << Established)},
		{"state established or sport = 1", defaultStates},
		{"state listening or sport = 1", defaultStates | 1<<Listen},
		{"not ( state established or state closing )", defaultStates &^ (1<<Established | 1<<Closing)},
		{"not ( state established and sport = 1 )", defaultStates},
		{"state bucket ( state time-wait )", 1 << TimeWait},
		{"( state closing ) and ( state established )", 0},
	}
	for _, tt := range tests {
		if got := parse(t, tt.filter).States(); got != tt.want {
			t.Errorf("%s: got %#x, want %#x", tt.filter, got, tt.want)
		}
	}
}

func TestFilterKernel(t *testing.T) {
	both := KernelSupport{Marks: true, Cgroups: true}
	port := KernelFilter{Op: KernelHost, Port: 1}
	tests := []struct {
		filter string
		has    KernelSupport
		want   *KernelFilter
	}{
		{"verdict = dead", both, nil},
		{"sport = 1", both, &port},
		{"sport = 1 and verdict = dead", both, &port},
		{"sport = 1 or verdict = dead", both, nil},
		{"not ( sport != 1 or verdict = dead )", both, &port},
		{"not ( sport = 1 and verdict = dead )", both, nil},
		{"sport < 9", both, &KernelFilter{Op: KernelPortAtLeast, Not: true, Port: 9}},
		{"not dport > 9", both, &KernelFilter{Op: KernelPortAtMost, Peer: true, Port: 9}},
		{"dst = *", both, nil},
		{"family = ipv4", both, &KernelFilter{Op: KernelHost, Not: true, Port: -1, Host: netip.MustParsePrefix("::/0")}},
		{"mark = 1", KernelSupport{}, nil},
		{"mark > 1", both, nil},
		{"fwmark != 1/3", both, &KernelFilter{Op: KernelMark, Not: true, Value: 1, Mask: 3}},
		{"cgroup = 5 and sport = 1", KernelSupport{}, &port},
		{"autobound", both, nil},
		{"not ( sport = 1 or dev = 4 and comm = x )", both, &KernelFilter{Op: KernelHost, Not: true, Port: 1}},
		{"sport = 1 and ( dev = 2 or dev = 3 )", both, &KernelFilter{Op: KernelAll, Kids: []KernelFilter{port,
			{Op: KernelAny, Kids: []KernelFilter{{Op: KernelDev, Value: 2}, {Op: KernelDev, Value: 3}}}}}},
	}
	for _, tt := range tests {
		if got := parse(t, tt.filter).Kernel(tt.has); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s\n got %+v\nwant %+v", tt.filter, got, tt.want)
		}
	}
}
