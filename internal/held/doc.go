// Package held takes duplicates of the sockets that running programs hold
// (pidfd_getfd(2)), and makes sure by the cookie that each is the one meant.
//
// While a duplicate is open the owner's close sends no FIN, so it is kept for
// microseconds, one at a time:
//
//	t := held.New()
//	defer t.Close()
//	s, refusal := t.Take(cookie, owners)
//	if refusal != held.None {
//		return refusal
//	}
//	defer t.Give(s)
//
// Linux 5.6 and later; empty elsewhere. Needs CAP_SYS_PTRACE for other users'
// processes, and for any where kernel.yama.ptrace_scope is not 0
// (PTRACE_MODE_ATTACH_REALCREDS of ptrace(2)).
package held

// Refusal is why a socket could not be taken. None means it was.
type Refusal string

// The refusals.
const (
	None        Refusal = ""
	NoOwner     Refusal = "no process holds a descriptor of it (kernel socket, io_uring fixed file, or not yet accepted)"
	Hidden      Refusal = "its program is hidden, likely another user's (needs CAP_SYS_PTRACE)"
	OwnerGone   Refusal = "the process that held it closed it or ended"
	Reused      Refusal = "its descriptor now holds something else"
	MPTCP       Refusal = "a subflow of an MPTCP connection cannot be reached"
	NeedsPtrace Refusal = "its process may not be looked into (needs CAP_SYS_PTRACE, or the same user and kernel.yama.ptrace_scope 0)"
	NeedsKernel Refusal = "needs pidfd_getfd(2), Linux 5.6"
	Failed      Refusal = "the kernel refused a duplicate of it"
)

// Error gives the refusal in words.
func (r Refusal) Error() string { return string(r) }

// Gone reports whether none of the descriptors named holds the socket any
// more; another may.
func (r Refusal) Gone() bool { return r == OwnerGone || r == Reused }

// Privilege reports whether more privilege, or a newer kernel, would help.
func (r Refusal) Privilege() bool { return r == Hidden || r == NeedsPtrace || r == NeedsKernel }
