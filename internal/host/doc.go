// Package host reads and changes the defaults that an operating system gives
// to TCP connections without values of their own: when keepalive begins to
// probe, how often, how many probes must go unanswered, and how long data, a
// SYN or an orphan is retransmitted.
//
//	h, err := host.New(host.Options{})
//	state, err := h.Show()                    // in force, at the next boot, and which line says so
//	plan, err := h.Plan(change)               // what Set would do; changes nothing
//	plan, err = h.Set(ctx, change)            // now, and for the next boot
//	undone, err := h.Restore(ctx)             // as before the first Set
//
// What Set changes is on disk first, in the state folder, so that after a
// kill -9 between any two steps [Host.Restore], or the next Set, finds it and
// puts back what was in force and the file byte for byte.
//
//	Linux            sysctls of one network namespace; a file in /etc/sysctl.d
//	                 that systemd-sysctl(8) and sysctl(8) --system read at boot
//	FreeBSD          sysctls; /etc/sysctl.conf
//	macOS            sysctls only: newer systems read no /etc/sysctl.conf
//	Windows          the registry, which is read at boot: a reboot is needed
//
// Elsewhere [New] returns an error matching [errors.ErrUnsupported]. Looking
// needs no privilege. Setting needs root: on Linux CAP_NET_ADMIN over the
// network namespace and the right to write to /etc/sysctl.d. On Linux this is
// tested on the kernel and, for the rules of the files, against both programs
// that read them; the logic of FreeBSD and macOS against a fake of their
// system calls.
package host
