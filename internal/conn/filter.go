package conn

// Filter selects connections. Its language is that of ss(8), with predicates
// of our own:
//
//	[state STATE]... [exclude STATE]... EXPRESSION
//
//	state established and ( sport = :5432 or dst 10.0.0.0/8 )
//	verdict = dead and heard > 10m
//	comm = postgres and not src 127.0.0.0/8
//
// Operators from loosest to tightest: or | ||, and & && (also understood
// between predicates that stand side by side), not !. That is the precedence
// ss(8) documents; ss itself (iproute2 6.1) takes and/or from left to right,
// so mixed ones are best written with parentheses.
//
//	src dst                = !=           ADDR, ADDR/len, [v6]:port, ADDR:port, :port, *:port, inet:…, inet6:…
//	sport dport            = != < <= > >= [:]PORT, by number or service name
//	dev                    = !=           interface by name or index
//	fwmark                 = !=           N or N/mask
//	cgroup                 = !=           path or cgroup v2 id
//	autobound blind
//	verdict timer family   = !=           by name
//	heard sent rtt         = != < <= > >= duration (ParseDuration)
//	pid uid inode cookie netns mark recv-q send-q   = != < <= > >= number
//	comm unit container    = !=           pattern (path.Match)
//
// Words are keywords in any case; = may be left out; what contains spaces or
// operators is put in double quotes, and \ takes the next character as it is.
// pid, comm, unit and container hold when any owner of the socket fits, and
// with != when none does. autobound tests the local port against the range
// of automatically chosen ports, as ss does where the kernel is not asked.
// blind holds for connections that the kernel would never give up.
//
// Without a state the filter sees what ss shows: the connected states but
// SYN-RECEIVED and TIME-WAIT, and besides the states its expression names.
//
// A Filter is immutable and safe for concurrent use.
type Filter struct {
	base  States // states let in before the expression is looked at
	named bool   // base was written out, it is not the default
	expr  node   // nil: everything
}

// Resolver turns the names in a filter into numbers, so that this package
// needs no I/O. Where a function is nil only numbers are accepted.
type Resolver struct {
	Port      func(name string) (uint16, bool)   // service name, services(5)
	Interface func(name string) (uint32, bool)   // interface name to index
	Cgroup    func(path string) (uint64, bool)   // cgroup v2 path to id
	Ephemeral func() (low, high uint16, ok bool) // net.ipv4.ip_local_port_range; nil means 32768 to 60999
}

// Subject is what a filter is asked about. Sock must be set; fill in the rest
// as it becomes known. Reuse one Subject for many sockets.
type Subject struct {
	Sock        *Sock
	Verdict     Verdict
	Judged      bool // Verdict is known
	Blind       bool // the kernel would never give it up
	Foreseen    bool // Blind is known
	Owners      []Owner
	OwnersKnown bool                     // Owners is complete
	Process     func(pid int32) *Process // nil, or a nil result: not known
}

// Truth is Kleene's three-valued truth.
type Truth uint8

// The values of Truth, ordered: and is the minimum, or the maximum.
const (
	No Truth = iota
	Maybe
	Yes
)

// String gives "no", "maybe" or "yes".
func (t Truth) String() string {
	switch t {
	case No:
		return "no"
	case Maybe:
		return "maybe"
	default:
		return "yes"
	}
}

func truth(b bool) Truth {
	if b {
		return Yes
	}
	return No
}

// sock_diag tells NewSynReceived as SynReceived and BoundInactive as Close
// (inet_req_diag_fill, inet_diag_dump_icsk), but must be asked for either by
// its own bit: so each pair is one state to a filter. bucket are the states
// kept as minisockets, which ss hides unless named.
const (
	synReceived   = States(1<<SynReceived | 1<<NewSynReceived)
	closed        = States(1<<Close | 1<<BoundInactive)
	bucket        = synReceived | 1<<TimeWait
	defaultStates = Connections &^ bucket
)

// ParseFilter reads a filter from the words of a command line, joined with
// single spaces. No words give the filter that matches every connection in
// the default states. An error is a *FilterError.
func ParseFilter(words []string, r Resolver) (*Filter, error) {
	p := &parser{resolver: r}
	if err := p.lex(words); err != nil {
		return nil, err
	}
	f, err := p.filter()
	if err == nil && len(f.String()) > maxFilter { // so that it can be read back
		return nil, p.errorAt(1, "filter longer than 16 KiB when written out")
	}
	return f, err
}

// Match tells whether the filter selects s. Maybe means that owners, process,
// verdict or forecast are not known yet, or that the kernel did not tell what is asked
// for (a TIME-WAIT socket has no heard, a kernel before 5.9 tells no cgroup):
// once everything there is to know is filled in, take it for no. Fields
// told only to the privileged (Sock.Mark) are taken as they stand. Match does
// not allocate.
func (f *Filter) Match(s *Subject) Truth {
	if !f.base.Has(s.Sock.State) {
		return No
	}
	if f.expr == nil {
		return Yes
	}
	return f.expr.match(s)
}

// States is the set of states the filter can match in, for idiag_states of
// sock_diag(7): it may be too large, never too small.
func (f *Filter) States() States {
	if f.expr == nil {
		return f.base
	}
	return f.base & possibleStates(f.expr, false)
}

// NeedsOwners reports whether Match looks at the owners of sockets.
func (f *Filter) NeedsOwners() bool {
	return anyNode(f.expr, func(n node) bool {
		switch n := n.(type) {
		case numPred:
			return n.field == fieldPID
		case globPred:
			return true
		}
		return false
	})
}

// NeedsForecast reports whether Match looks at when the kernel would give the
// connection up.
func (f *Filter) NeedsForecast() bool {
	return anyNode(f.expr, func(n node) bool { return n == blindPred{} })
}

// NeedsVerdict reports whether Match looks at the verdict.
func (f *Filter) NeedsVerdict() bool {
	return anyNode(f.expr, func(n node) bool {
		p, ok := n.(numPred)
		return ok && p.field == fieldVerdict
	})
}

// NamesVerdict reports whether the filter lets connections in, in whatever
// alternative, for having that verdict.
func (f *Filter) NamesVerdict(v Verdict) bool {
	return f.expr != nil && mayBe(f.expr, false, numPred{field: fieldVerdict, op: opEQ, value: uint64(v)})
}

// Names reports whether the filter matches the connection with that cookie
// only because it says so: whichever alternative lets it in has a predicate
// cookie = N that must hold.
func (f *Filter) Names(cookie uint64) bool {
	named := anyNode(f.expr, func(n node) bool { return n == numPred{field: fieldCookie, op: opEQ, value: cookie} })
	return named && alwaysNames(f.expr, false)
}

// String gives the filter in canonical form, names resolved to numbers but for
// paths of cgroups. ParseFilter reads it back as an equal filter.
func (f *Filter) String() string {
	var b []byte
	if f.named {
		b = appendStates(b, f.base)
	}
	if f.expr == nil {
		return string(b)
	}
	expr := appendNode(nil, f.expr, looseOr)
	if f.named {
		b = append(b, ' ')
		if set, ok := leadingState(f.expr); ok { // else it would be read as one more of the base
			first := appendStates(nil, set)
			b, expr = append(append(append(b, "( "...), first...), " )"...), expr[len(first):]
		}
	}
	return string(append(b, expr...))
}
