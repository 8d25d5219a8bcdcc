package cli

import (
	"bufio"
	"fmt"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/advise"
	"deadpeer/internal/conn"
	"deadpeer/keepalive"
)

const adviseWidth = 80

// adviseText writes advice for people: a line for each program, and below it
// what is to be done.
func (a *app) adviseText(v *advice) error {
	t := &adviseWriter{w: bufio.NewWriter(a.stdout)}
	if v.Software != nil {
		t.entry(v)
	} else {
		t.report(v)
	}
	return t.w.Flush()
}

type adviseWriter struct{ w *bufio.Writer }

// item writes text beside a label, wrapped at blanks.
func (t *adviseWriter) item(label, text string) {
	line := fmt.Sprintf("  %-6s", label)
	length := len(line)
	for word := range strings.FieldsSeq(text) {
		if n := len([]rune(word)); length+1+n > adviseWidth && length > 8 {
			line += "\n        "
			length = 8
		} else if length > 8 {
			line += " "
			length++
		}
		line += word
		length += len([]rune(word))
	}
	fmt.Fprintln(t.w, line)
}

// verbatim writes lines to copy, the first beside a label.
func (t *adviseWriter) verbatim(label, text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintf(t.w, "  %-6s%s", label, line)
		if !strings.HasSuffix(line, "\n") {
			fmt.Fprintln(t.w)
		}
		label = ""
	}
}

// policyWords says what a policy does; named tells where it comes from.
func policyWords(p keepalive.Policy, named string) string {
	text := fmt.Sprintf("%s idle, then %d probes %s apart%s: a vanished peer is given up after %s",
		span(p.Idle), p.Probes, span(p.Interval), named, span(forecast.DetectionTime(p)))
	if p.UserTimeout > 0 {
		text += ", with data in flight after " + span(p.UserTimeout) + " where a user timeout can be set"
	}
	return text
}

func (t *adviseWriter) log(l *logged) {
	s, total := l.Summary, l.Summary.Total()
	span := ""
	if !s.From.IsZero() {
		span = fmt.Sprintf(", %s to %s", s.From.Format(time.DateOnly), s.To.Format(time.DateOnly))
	}
	t.item("log", fmt.Sprintf("%s: %s%s", conn.Printable(l.File), plural(s.Entries, "entry", "entries"), span))
	fmt.Fprintf(t.w, "        resets (104, 10054) %d, timeouts (110, 10060) %d, NetBEUI (108, 109) %d\n", total.Resets, total.Timeouts, total.NetBEUI)
	const shown = 5
	for i, h := range s.Hosts {
		if i == shown {
			fmt.Fprintf(t.w, "        … and %d more clients\n", len(s.Hosts)-i)
			break
		}
		name := h.Host
		if name == "" {
			name = "(client not named)"
		}
		fmt.Fprintf(t.w, "        %-20s resets %d, timeouts %d, NetBEUI %d\n", name, h.Resets, h.Timeouts, h.NetBEUI)
	}
	t.item("take", policyWords(l.Advice.Policy, ""))
	for _, r := range l.Advice.Reasons {
		t.item("why", r)
	}
}

func (t *adviseWriter) entry(v *advice) {
	e := v.Software
	fmt.Fprintf(t.w, "%s (%s)\n", e.Name, e.Role)
	if v.Log != nil {
		t.log(v.Log)
	}
	t.item("for", policyWords(v.advised(), ""))
	for _, f := range e.Files {
		t.item("file", f.Path+" ("+f.Where+")")
	}
	for _, k := range e.Keys {
		unit := ""
		if k.Unit != "" {
			unit = " (" + k.Unit + ")"
		}
		t.item("key", k.Name+unit+": "+k.Meaning)
	}
	t.verbatim("put", e.Advice.Example)
	for _, line := range e.Advice.Apply {
		t.verbatim("then", line)
	}
	for _, c := range e.Caveats {
		t.item("note", c)
	}
	for _, s := range e.Source {
		t.item("see", s)
	}
}

func (t *adviseWriter) report(v *advice) {
	if len(v.Report.Programs) == 0 {
		fmt.Fprintln(t.w, "no connections")
		return
	}
	named := ""
	if !v.Given {
		named = " (profile " + adviseProfile + ", the default)"
	}
	fmt.Fprintln(t.w, policyWords(v.Policy, named))
	for i := range v.Report.Programs {
		p := &v.Report.Programs[i]
		if i == 0 || p.Mend || v.Report.Programs[i-1].Mend {
			fmt.Fprintln(t.w)
		}
		t.program(v, p)
	}
}

// programName is what a program is called.
func programName(p *advise.Program) string {
	name := p.Name
	switch {
	case name == "":
		name = "(owner not known)"
	case p.Software != nil && p.Software.ID == "go":
		name += ", a Go program"
	case p.Software != nil:
		name = p.Software.Name
	}
	if p.PID != 0 {
		name += fmt.Sprintf(" [%d]", p.PID)
	}
	return name
}

func (t *adviseWriter) program(v *advice, p *advise.Program) {
	parts := []string{count(p.Connections, "connection")}
	if p.Blind > 0 {
		parts = append(parts, fmt.Sprintf("%d blind", p.Blind))
	}
	if p.Slow > 0 {
		parts = append(parts, fmt.Sprintf("%d slow (up to %s)", p.Slow, span(p.Worst)))
	}
	if p.Unknown > 0 {
		parts = append(parts, fmt.Sprintf("%d with unknown settings", p.Unknown))
	}
	line := programName(p) + "  " + strings.Join(parts, ", ")
	switch {
	case p.Mend:
	case p.Config != nil && p.Config.Asks && p.Enough(v.Policy):
		line += fmt.Sprintf(": asks its peers itself, gone after %s", span(p.Config.Within))
	case p.Unknown == p.Connections:
		line += ": more is seen as root"
	default:
		line += fmt.Sprintf(": all given up within %s", span(p.Worst))
	}
	fmt.Fprintln(t.w, line)
	if p.Config != nil && p.Mend {
		t.config(p)
	}
	if v.Log != nil && p.Software != nil && keepsLog(p.Software.ID) {
		t.log(v.Log)
	}
	switch {
	case !p.Mend:
	case p.Software == nil:
		t.generic(v, p)
	default:
		t.put(v, p)
	}
}

// config says what is set now, and whether the open connections agree.
func (t *adviseWriter) config(p *advise.Program) {
	const shown = 8
	for i, s := range p.Config.Settings {
		if i == shown {
			fmt.Fprintf(t.w, "        … and %d more\n", len(p.Config.Settings)-i)
			break
		}
		label := ""
		if i == 0 {
			label = "now"
		}
		fmt.Fprintf(t.w, "  %-6s%s = %s   (%s)\n", label, s.Key, s.Value, settingPlace(s))
	}
	if len(p.Config.Settings) == 0 && len(p.Config.Files) > 0 && len(p.Software.Keys) > 0 {
		more := ""
		if n := len(p.Config.Files) - 1; n > 0 {
			more = fmt.Sprintf(" and %s", plural(n, "other file", "other files"))
		}
		t.item("now", "nothing of it is set in "+p.Config.Files[0]+more)
	}
	if p.Differ > 0 {
		t.item("open", fmt.Sprintf("%d of %s have other settings than that: made before it was set, or it is not loaded", p.Differ, count(p.Compared, "connection")))
	} else if p.Compared > 0 && len(p.Config.Settings) > 0 {
		t.item("open", count(p.Compared, "connection")+" compared: as it says there")
	}
	for _, h := range p.Config.Harmful {
		t.item("bad", h)
	}
	for _, problem := range p.Config.Problems {
		t.item("?", problem)
	}
}

func settingPlace(s advise.Setting) string {
	if s.Line == 0 {
		return s.File
	}
	return fmt.Sprintf("%s:%d", s.File, s.Line)
}

// put says what to put where for software that is known.
func (t *adviseWriter) put(v *advice, p *advise.Program) {
	s := p.Software
	if p.Enough(v.Policy) {
		t.item("then", "the configuration is right already; load it, and let the open connections be renewed, or:")
		fmt.Fprintf(t.w, "        %s\n", attachCommand(v, p))
		return
	}
	if file := adviseFile(p); file != "" {
		t.item("file", file)
	}
	t.verbatim("put", p.Advice.Example)
	for _, line := range p.Advice.Apply {
		t.verbatim("then", line)
	}
	if p.Blind+p.Slow > 0 && !strings.Contains(strings.Join(s.Apply, ""), "attach") {
		t.verbatim("or", attachCommand(v, p)+"   # open connections")
	}
	if len(s.Caveats) > 0 {
		t.item("note", s.Caveats[0])
	}
	t.item("more", "deadpeer advise --software "+s.ID)
}

// adviseFile is the file to put it into: the one that is set now, the one that
// was read first, or the usual one.
func adviseFile(p *advise.Program) string {
	s := p.Software
	host := len(s.Files) > 0 && strings.HasPrefix(s.Files[0].Path, "/etc/sysctl.d/")
	if c := p.Config; c != nil && !host {
		for _, set := range c.Settings {
			if set.Line > 0 {
				return set.File
			}
		}
		if len(c.Files) > 0 {
			return c.Files[0]
		}
	}
	if len(s.Files) == 0 {
		return ""
	}
	return s.Files[0].Path + " (" + s.Files[0].Where + ")"
}

// generic are the ways that fit every program.
func (t *adviseWriter) generic(v *advice, p *advise.Program) {
	if p.Name == "" {
		t.item("then", "run as root to see whose they are")
		return
	}
	t.item("put", fmt.Sprintf("in its own settings or code: SO_KEEPALIVE 1, TCP_KEEPIDLE %d, TCP_KEEPINTVL %d, TCP_KEEPCNT %d",
		int(v.Policy.Idle.Seconds()), int(v.Policy.Interval.Seconds()), v.Policy.Probes))
	what := "its open sockets"
	if service(p) {
		what = "sockets of its unit, open and new"
	}
	t.verbatim("or", attachCommand(v, p)+"   # "+what)
	if p.Slow > 0 {
		t.verbatim("or", "deadpeer tune set "+policyArguments(v.Policy)+"   # the host's defaults, for sockets with SO_KEEPALIVE on")
	}
}

var plainService = regexp.MustCompile(`^[\w:.@-]+\.service$`)

// service reports whether a unit says which connections will be the program's:
// a scope or a slice holds others as well, and a shell or the pattern would
// take some characters for more than a name.
func service(p *advise.Program) bool {
	return plainService.MatchString(p.Unit)
}

// attachCommand reaches connections to come only by a unit: whose they will be
// by name cannot be told before they are made.
func attachCommand(v *advice, p *advise.Program) string {
	if service(p) {
		return fmt.Sprintf("deadpeer attach %s --new --unit %s", policyArguments(v.Policy), p.Unit)
	}
	name := conn.Quote(p.Name)
	// What a shell, or the pattern, would take for more than a name.
	if strings.ContainsAny(name, `'\*?[`) {
		name = "NAME"
	}
	return fmt.Sprintf("deadpeer attach %s 'comm = %s'", policyArguments(v.Policy), name)
}

func policyArguments(p keepalive.Policy) string {
	return fmt.Sprintf("--idle %ds --interval %ds --probes %d", int(p.Idle.Seconds()), int(p.Interval.Seconds()), p.Probes)
}

func (a *app) adviseList(list []advise.Software) error {
	if a.common.output == "json" {
		return a.adviseListJSON(list)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SOFTWARE\tNAME\tROLE\tFILE")
	for _, s := range list {
		file := "-"
		if len(s.Files) > 0 {
			file = s.Files[0].Path
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s.ID, s.Name, s.Role, file)
	}
	return w.Flush()
}
