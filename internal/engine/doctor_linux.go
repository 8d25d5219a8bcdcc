package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"deadpeer/internal/bpf"
	"deadpeer/internal/conn"
	"deadpeer/internal/jiffies"
	"deadpeer/internal/journal"
	"deadpeer/internal/sockdiag"
)

// Diagnose finds out what this kernel and these privileges allow. It changes
// nothing.
func (e *Engine) Diagnose() []Finding {
	capabilities := effective()
	has := func(bit uint, name, what, without string) Finding {
		f := Finding{What: what, OK: capabilities&(1<<bit) != 0, Detail: "with " + name}
		if !f.OK {
			f.Detail, f.Mend = without, "run as root, or grant "+name
		}
		return f
	}
	list := []Finding{e.diagnoseKernel(), diagnoseSockDiag(), diagnoseGetfd()}
	list = append(list,
		has(unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "see and ask connections of other users' programs", "only the caller's own programs are seen into"),
		has(unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "ask by window probe, and release", "own connections are asked by keepalive, where an unanswered question counts as a probe; nothing can be released"),
		has(unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "enter other network namespaces (--netns)", "only the current namespace"),
		diagnoseDestroy(), e.diagnoseTuning(), diagnoseUserNamespaces())
	if scope, err := readSysctl("/proc/sys/kernel/yama/ptrace_scope", 0); err == nil {
		list = append(list, diagnoseYama(scope, capabilities&(1<<unix.CAP_SYS_PTRACE) != 0)...)
	}
	for _, f := range bpf.Features() {
		list = append(list, Finding{What: f.Name, OK: f.OK, Detail: f.Detail, Mend: f.Mend, Optional: true})
	}
	return append(list, e.diagnoseLeftovers()...)
}

func effective() uint64 {
	b, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(v), 16, 64) // 0 when it is no number
			return n
		}
	}
	return 0
}

func (e *Engine) diagnoseKernel() Finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Finding{What: "kernel", Detail: err.Error()}
	}
	return Finding{What: "kernel", OK: true, Detail: fmt.Sprintf("%s %s, HZ=%d", unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]), jiffies.HZ())}
}

func diagnoseSockDiag() Finding {
	f := Finding{What: "list connections (sock_diag)"}
	c, err := sockdiag.Open(nil)
	if err == nil {
		defer func() { _ = c.Close() }()
		n := 0
		err = c.Dump(context.Background(), sockdiag.Query{}, func(*conn.Sock, *sockdiag.Memory) error { n++; return nil })
		f.Detail = count(n, "connection") + " here"
	}
	if f.OK = err == nil; !f.OK {
		f.Detail, f.Mend = err.Error(), "needs a kernel with CONFIG_INET_DIAG and CONFIG_INET_TCP_DIAG"
	}
	return f
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// diagnoseGetfd takes a duplicate of a descriptor of our own.
func diagnoseGetfd() Finding {
	f := Finding{What: "reach the sockets of running programs (pidfd_getfd)", Detail: "the kernel has it"}
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err == nil {
		defer func() { _ = unix.Close(pidfd) }()
		var fd int
		if fd, err = unix.PidfdGetfd(pidfd, pidfd, 0); err == nil {
			_ = unix.Close(fd)
		}
	}
	if f.OK = err == nil; !f.OK {
		f.Detail, f.Mend = err.Error(), "needs Linux 5.6, and a seccomp profile that allows pidfd_open and pidfd_getfd"
	}
	return f
}

// diagnoseYama tells what else pidfd_getfd(2), an attach in the sense of
// ptrace(2), meets: yama_ptrace_access_check of the kernel. Nothing is told
// where that is nothing.
func diagnoseYama(scope int, ptrace bool) []Finding {
	f := Finding{What: "look into running programs (Yama)"}
	switch {
	case scope >= 3:
		f.Detail = "kernel.yama.ptrace_scope is 3: no program is looked into"
		f.Mend = "leave it below 3 at the next boot; it cannot be lowered before"
	case scope > 0 && !ptrace:
		f.Detail = fmt.Sprintf("kernel.yama.ptrace_scope is %d: not even the caller's own programs are looked into", scope)
		f.Mend = "run as root, or grant CAP_SYS_PTRACE, or sysctl -w kernel.yama.ptrace_scope=0"
	default:
		return nil
	}
	return []Finding{f}
}

// diagnoseDestroy names a socket that cannot exist: a kernel without
// CONFIG_INET_DIAG_DESTROY says EOPNOTSUPP, one with it ENOENT or EPERM.
func diagnoseDestroy() Finding {
	f := Finding{What: "end connections (SOCK_DESTROY)", OK: true, Detail: "the kernel has it"}
	c, err := sockdiag.Open(nil)
	if err != nil {
		f.OK, f.Detail = false, err.Error()
		return f
	}
	defer func() { _ = c.Close() }()
	nobody := conn.Sock{Cookie: 1, NetNS: c.NetNS(), Family: conn.IPv4, State: conn.Established}
	err = c.Destroy([]*conn.Sock{&nobody}, func(_ int, outcome error) {
		if outcome != nil && !errors.Is(outcome, sockdiag.ErrGone) {
			f.OK, f.Detail = false, outcome.Error()
		}
	})
	if err != nil {
		f.OK, f.Detail = false, err.Error()
	}
	if !f.OK {
		f.Mend = "run as root on a kernel with CONFIG_INET_DIAG_DESTROY"
	}
	return f
}

// diagnoseLeftovers tells what killed processes left, one finding for each.
func (e *Engine) diagnoseLeftovers() (list []Finding) {
	const what = "what a killed deadpeer left"
	left, err := e.leftovers()
	for _, l := range left {
		list = append(list, Finding{What: what, Left: true, Detail: l.What + ": " + l.Why, Mend: "deadpeer doctor --clean"})
	}
	if held, busy := errors.AsType[*journal.HeldError](err); busy {
		return append(list, Finding{
			What: what, OK: len(left) == 0, Left: true, Detail: fmt.Sprintf("another deadpeer is at work (process %d): what it does is not looked at", held.PID),
		})
	}
	switch {
	case errors.Is(err, os.ErrPermission):
		list = append(list, Finding{What: what, Optional: true, Detail: "not all could be looked at: " + err.Error(), Mend: "run as root"})
	case err != nil:
		list = append(list, Finding{What: what, Detail: err.Error(), Mend: "remove what is damaged; a folder must be your own, with mode 0700"})
	case len(list) == 0:
		list = append(list, Finding{What: what, OK: true, Detail: "nothing"})
	}
	return list
}

// diagnoseTuning looks for a tune that was killed.
func (e *Engine) diagnoseTuning() Finding {
	f := Finding{What: "keepalive defaults of this host", Mend: "deadpeer tune restore"}
	state, err := e.Tuning(context.Background(), TuneRequest{})
	switch err = errors.Join(err, state.JournalErr); {
	case err != nil:
		f.Detail, f.Mend = err.Error(), "move the damaged journal away, and look at deadpeer tune show"
	case state.Interrupted:
		f.Detail = "a change of them was killed half way"
	case state.Unrecorded != nil:
		u := state.Unrecorded
		f.OK, f.Mend = true, "rm "+u.Path
		f.Detail = fmt.Sprintf("%s says that deadpeer wrote it, but there is no record of that; at boot it sets %s",
			u.Path, conn.Printable(strings.Join(u.Sets, ", ")))
	case state.Changed.IsZero():
		f.OK, f.Detail, f.Mend = true, "not changed by deadpeer", ""
	default:
		f.OK, f.Detail, f.Mend = true, "changed by deadpeer since "+state.Changed.Format(time.RFC3339), ""
	}
	return f
}

func diagnoseUserNamespaces() Finding {
	f := Finding{What: "demo without root (user namespaces)"}
	b, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	limit, convErr := strconv.Atoi(strings.TrimSpace(string(b)))
	f.OK = err == nil && convErr == nil && limit > 0
	for _, gate := range [...]struct{ file, bad string }{
		{"/proc/sys/kernel/unprivileged_userns_clone", "0"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"},
	} {
		if b, err := os.ReadFile(gate.file); err == nil && strings.TrimSpace(string(b)) == gate.bad {
			f.OK, f.Mend = false, "sysctl -w "+strings.ReplaceAll(strings.TrimPrefix(gate.file, "/proc/sys/"), "/", ".")+"="+map[string]string{"0": "1", "1": "0"}[gate.bad]
		}
	}
	if !f.OK && f.Mend == "" {
		f.Mend = "sysctl -w user.max_user_namespaces=10000"
	}
	if f.OK {
		f.Detail = "allowed"
	} else {
		f.Detail = "not allowed to other users than root"
	}
	return f
}
