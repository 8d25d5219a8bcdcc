package demo

import (
	"fmt"
	"io"
	"strings"
	"time"

	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/internal/verdict"
	"deadpeer/internal/wire"
)

// Story tells what Run does, in lines of at most 80 columns. Its methods fit
// Options.Observe and Options.Progress.
type Story struct {
	Out    io.Writer
	Colour bool // with ANSI colours
	Live   bool // Out is a terminal: show how far asking is, in a line that goes again

	err   error // the first of writing
	shown time.Duration
}

// The colours of the story.
const (
	bold   = "1"
	dim    = "2"
	green  = "32"
	red    = "1;31"
	yellow = "33"
)

// Observe tells of a step.
func (s *Story) Observe(step Step, r *Result) {
	s.wipe()
	switch step {
	case Staged:
		s.staged(r)
	case Locked:
		s.heading(1, "A takes a row lock, from its laptop")
		s.said(r.Phantom.String(), "LOCK "+contested, s.paint(green, answerOK))
		s.line("%d others in the office lock rows of their own. Then all are idle.", Bystanders)
	case Cut:
		s.heading(2, "The laptop's link is cut")
		s.line("No FIN, no RST, no ICMP: silence. Both ends believe they are connected.")
	case Conflict:
		s.heading(3, "A comes back from another desk and wants its row")
		s.said(r.Back.String(), "LOCK "+contested, s.paint(yellow, r.Answer))
		s.line("A is locked out by its own phantom: the lock goes when the connection")
		s.line("does, and nobody has told the server. Until somebody does, no one can")
		s.line("change that row.")
	case Foreseen:
		s.foreseen(r)
	case Asking:
		s.heading(5, "Is anybody there? deadpeer has the kernel ask every client")
		s.command("deadpeer check 'sport = :%d'", port)
	case Judged:
		s.judged(r)
	case Releasing:
		s.heading(6, "The dead one is released, and no other")
		s.command("deadpeer release --yes --silence %s 'sport = :%d'", r.Silence, port)
		s.line("%s of silence is enough for a demo. Unless told otherwise, a release waits", clock(r.Silence))
		s.line("for 60 s: roaming clients, fail-overs and sleeping laptops come back.")
	case Released:
		s.line("%s  %s", s.paint(green, "released"), r.Phantom)
		s.wire(r)
		s.line("What the server's program was told, on its next look at the connection:")
		s.line("  %s", s.paint(dim, r.Seen))
	case Regained:
		s.heading(7, "A takes its lock")
		s.said(r.Back.String(), "LOCK "+contested, s.paint(green, answerOK))
		s.line("The %d others still hold their locks, and all of them answer.", r.Alive)
	case Over:
		s.timeline(r)
	}
}

// Progress shows how far asking is.
func (s *Story) Progress(p engine.Progress) {
	if !s.Live || p.Elapsed < s.shown+100*time.Millisecond {
		return
	}
	s.shown = p.Elapsed
	s.print("\r\x1b[K   asking: %d answered, %d silent, for %.1f s",
		p.Alive, p.Silent+p.Dead, p.Elapsed.Seconds())
}

// End ends the story wherever it is, and gives the first error of writing.
func (s *Story) End() error {
	s.wipe()
	return s.err
}

func (s *Story) wipe() {
	if s.shown > 0 {
		s.print("\r\x1b[K")
		s.shown = 0
	}
}

func (s *Story) staged(r *Result) {
	s.print("%s\n", s.paint(bold, "A phantom holds a lock: real TCP, a really cut link"))
	s.print("%s\n\n", s.paint(dim, "In throw-away network namespaces; nothing of this host is touched."))
	s.print("   A's laptop   ───┐\n")
	s.print("   another desk ───┼─── router ─── lock server %s, pid %d\n", r.Server, r.ServerPID)
	s.print("   office       ───┘\n")
}

func (s *Story) foreseen(r *Result) {
	p := r.Settings.Policy
	s.heading(4, "What would the kernel do about it by itself?")
	s.command("deadpeer scan 'sport = :%d'", port)
	s.line("%s  %s ↔ %s  %s[%d]", r.State, r.Server, r.Phantom, r.Owner, r.ServerPID)
	s.line("keepalive is off on this socket:  it stays %s", s.paint(red, "for ever"))
	s.line("were it on, with the defaults:    given up after %s", clock(r.WithKeepAlive))
	s.line("                                  %s", s.paint(dim, fmt.Sprintf("(%.0f s idle, then %d probes %.0f s apart)",
		p.Idle.Seconds(), p.Probes, p.Interval.Seconds())))
}

func (s *Story) judged(r *Result) {
	for _, v := range r.Verdicts {
		who, colour, reason := "office", green, v.Reason
		switch v.Peer {
		case r.Phantom:
			who, colour = "A's phantom", red
		case r.Back:
			who = "A's new one"
		}
		if v.Verdict == conn.Dead && v.Unanswered > 0 {
			reason = fmt.Sprintf("%d questions unanswered in %s", v.Unanswered, verdict.Duration(v.Silence))
		}
		s.line("%s  %-15s %-11s  %s", s.paint(colour, fmt.Sprintf("%-5s", v.Verdict)), v.Peer, who, reason)
	}
	s.wire(r)
	s.line("Dead means: the chance that a living peer kept silent is at most one in")
	s.line("a million. The programs noticed nothing; their sockets are as they were.")
}

// wire tells what was seen there since the last time. After the verdict only
// the end is news.
func (s *Story) wire(r *Result) {
	if len(r.Wire) == 0 {
		return
	}
	s.command("deadpeer trace 'sport = :%d'", port)
	for _, w := range r.Wire {
		what, colour := "", dim
		switch {
		case w.Kind == wire.GiveUp:
			what, colour = "reset: it is over", yellow
		case r.Reached > Judged:
			continue
		case w.Kind == wire.Answer:
			what, colour = fmt.Sprintf("probe %d, answered after %.2f ms", w.N, w.RTT.Seconds()*1e3), green
		case w.Kind == wire.Unanswered:
			what, colour = fmt.Sprintf("probe %d, unanswered", w.N), red
		default:
			what = w.Kind.String()
		}
		s.line("%7.3f s  %v → %-15v  %s", w.At.Seconds(), r.Server, w.Peer, s.paint(colour, what))
	}
}

// timeline tells when all of it was, and what to do on a real host.
func (s *Story) timeline(r *Result) {
	s.print("\n%s\n", s.paint(bold, "When it was, in seconds after the cut"))
	at := func(d time.Duration, format string, args ...any) {
		s.print("%9.3f  %s\n", d.Seconds(), fmt.Sprintf(format, args...))
	}
	at(0, "the link is cut")
	at(r.Conflict, "A is locked out by its phantom")
	at(r.Asked, "the check begins")
	at(r.Judged, "the phantom is proven dead, %s later", verdict.Duration(r.Judged-r.Asked))
	at(r.Released, "it is released, after another %s of asking", verdict.Duration(r.Released-r.Judged))
	at(r.Regained, "A has its lock, %s later", verdict.Duration(r.Regained-r.Released))
	s.print("%9.0f  without deadpeer, if the server had keepalive on\n", r.WithKeepAlive.Seconds())
	s.print("%9s  without deadpeer, as it was\n", r.Forecast)

	s.print("\n%s\n", s.paint(bold, "On a host of yours, as root"))
	for _, c := range [][2]string{
		{"deadpeer scan", "list; shows who would stay for ever"},
		{"deadpeer check 'sport = :5432'", "ask; gives verdicts"},
		{"deadpeer release 'sport = :5432'", "the plan; with --yes it is done"},
		{"deadpeer doctor", "what this kernel allows"},
	} {
		s.print("   %s  %s\n", s.paint(bold, fmt.Sprintf("%-33s", c[0])), c[1])
	}
	s.print("\n%s\n", s.paint(dim, "All that the demo made is gone again."))
}

func (s *Story) heading(n int, text string) {
	s.print("\n%s\n", s.paint(bold, fmt.Sprintf("%d  %s", n, text)))
}

func (s *Story) command(format string, args ...any) {
	s.line("$ %s", s.paint(bold, fmt.Sprintf(format, args...)))
}

func (s *Story) said(who, what, answer string) { s.line("%-15s %s → %s", who, what, answer) }

func (s *Story) line(format string, args ...any) { s.print("   "+format+"\n", args...) }

func (s *Story) print(format string, args ...any) {
	if _, err := fmt.Fprintf(s.Out, format, args...); err != nil && s.err == nil {
		s.err = fmt.Errorf("write output: %w", err)
	}
}

func (s *Story) paint(colour, text string) string {
	if !s.Colour {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// clock writes whole seconds as "2 h 11 m 15 s".
func clock(d time.Duration) string {
	var b strings.Builder
	if h := d / time.Hour; h > 0 {
		fmt.Fprintf(&b, "%d h ", h)
	}
	if m := d / time.Minute; m > 0 {
		fmt.Fprintf(&b, "%d m ", m%60)
	}
	fmt.Fprintf(&b, "%d s", d/time.Second%60)
	return b.String()
}
