package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"deadpeer/forecast"
	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/internal/wire"
)

func (a *app) trace() *cobra.Command {
	var read, write, iface, svg, html string
	var lasts duration
	cmd := &cobra.Command{
		Use:   "trace [FILTER...]",
		Short: "Show keepalive probes and their answers on the wire",
		Long: `trace shows every keepalive probe that is sent, whether it was answered and how
fast, and when the kernel gives up: live, or from a pcap or pcapng file. Window
probes, retransmissions and resets are shown, too. It sends nothing.

A probe that is not answered within a second counts as unanswered. What is
shown is what passed here: an answer that never came this far is none.

With a file only addresses and ports can be selected. An answer tells that the
peer's kernel is there, not its program.`,
		Example: `  sudo deadpeer trace 'sport = :3050'
  sudo deadpeer trace -w probes.pcapng --for 10m 'dst 10.0.0.0/8'
  sudo deadpeer trace --svg probes.svg 'dst 10.0.0.9'
  deadpeer trace -r probes.pcapng -o jsonl`,
		RunE: func(cmd *cobra.Command, words []string) error {
			var out tracing = newTraceLines(a.stdout)
			if a.common.output == "jsonl" {
				out = &traceJSON{enc: json.NewEncoder(a.stdout)}
			}
			if svg == "-" || html == "-" {
				return usage(errors.New("--svg and --html: give a file; stdout has the lines"))
			}
			var drawing *tracePicture
			if svg != "" || html != "" {
				if err := errors.Join(mayCreate("--svg", svg), mayCreate("--html", html)); err != nil {
					return err
				}
				drawing = newTracePicture(out)
				out = drawing
			}
			filter, err := conn.ParseFilter(words, resolver())
			if err != nil {
				return err
			}
			if read == "" {
				req := engine.TraceRequest{Netns: a.common.netns, Interface: iface, Filter: filter}
				err := a.traceLive(cmd.Context(), req, time.Duration(lasts), write, out)
				return errors.Join(err, a.drawTrace(drawing, svg, html))
			}
			for _, flag := range []string{"write", "interface", "netns", "for"} {
				if cmd.Flags().Changed(flag) {
					return usage(fmt.Errorf("--%s: has no meaning with --read", flag))
				}
			}
			if !filter.OnlyEndpoints() {
				return usage(errors.New("--read: packets show addresses and ports only; the filter asks for more"))
			}
			return errors.Join(a.traceFile(cmd.Context(), read, filter, out), a.drawTrace(drawing, svg, html))
		},
	}
	addOutput(cmd, &a.common.output, "table", "jsonl")
	f := cmd.Flags()
	addNetns(cmd, &a.common.netns, "current")
	f.StringVarP(&iface, "interface", "i", "any", "capture on the interface of this `name` only")
	f.StringVarP(&read, "read", "r", "", "read this pcap or pcapng `file`; - is standard input")
	f.StringVarP(&write, "write", "w", "", "save the packets of the traced connections to this pcapng `file`")
	f.StringVar(&svg, "svg", "", "at the end draw the traced connections into this `file`")
	f.StringVar(&html, "html", "", "the same as a page, with every step in a table, into this `file`")
	f.Var(&lasts, "for", "stop after this time (default when interrupted)")
	return cmd
}

// mayCreate finds out before a long trace whether a file can be written.
func mayCreate(flag, name string) error {
	if name == "" {
		return nil
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o666)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", flag, err)
	}
	return nil
}

// drawTrace writes the pictures that were asked for.
func (a *app) drawTrace(p *tracePicture, svg, html string) error {
	if p == nil {
		return nil
	}
	if svg != "" {
		if err := a.writeFile(svg, p.draw().SVG); err != nil {
			return fmt.Errorf("--svg: %w", err)
		}
	}
	if html != "" {
		if err := a.writeFile(html, p.page().HTML); err != nil {
			return fmt.Errorf("--html: %w", err)
		}
	}
	return nil
}

// tracing writes what a trace tells.
type tracing interface {
	event(t *engine.Traced) error
	end() error
}

func (a *app) traceLive(ctx context.Context, req engine.TraceRequest, lasts time.Duration, write string, out tracing) (err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if write != "" {
		file, err := os.OpenFile(write, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return fmt.Errorf("--write: %w", err)
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		if req.Save, err = wire.NewWriter(file); err != nil {
			return err
		}
	}
	req.Started = func() {
		a.say("tracing; interrupt to stop")
		if lasts > 0 {
			time.AfterFunc(lasts, stop)
		}
	}
	stats, err := a.engine().Trace(ctx, req, out.event)
	err = errors.Join(err, out.end())
	if req.Save != nil {
		err = errors.Join(err, req.Save.Flush())
	}
	if stats == nil {
		return err
	}
	for _, n := range stats.Notes {
		a.say("%s", n.Text)
	}
	if stats.Dropped > 0 || stats.Forgotten > 0 {
		return errors.Join(err, &exit{exitPartly, fmt.Errorf(
			"events may be missing: the kernel dropped %d segments, %d connections were too many to follow; a filter helps",
			stats.Dropped, stats.Forgotten)})
	}
	return err
}

// traceFile tells what a capture file holds.
func (a *app) traceFile(ctx context.Context, name string, filter *conn.Filter, out tracing) error {
	in := a.stdin
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("--read: %w", err)
		}
		defer func() { _ = file.Close() }()
		in = file
	}
	r, err := wire.NewReader(in)
	if err != nil {
		return fmt.Errorf("--read %s: %w", name, err)
	}
	tracker := wire.NewTracker(wire.TrackerOptions{Select: func(x, y netip.AddrPort) bool {
		return filter.Endpoints(x, y) == conn.Yes || filter.Endpoints(y, x) == conn.Yes
	}})
	var failed error
	emit := func(e *wire.Event) {
		if failed == nil {
			failed = out.event(&engine.Traced{Event: e})
		}
	}
	err = r.Each(ctx, func(s *wire.Segment) error {
		tracker.Feed(s, emit)
		return failed
	})
	if failed == nil {
		failed = out.end()
		if err != nil {
			return errors.Join(fmt.Errorf("--read %s: %w", name, err), failed)
		}
	}
	if n := r.Skipped(wire.UnknownLink); n > 0 {
		return errors.Join(failed, &exit{exitPartly, fmt.Errorf("%s are of a kind of link that is not understood", count(n, "packet"))})
	}
	if n := tracker.Forgotten(); n > 0 {
		return errors.Join(failed, &exit{exitPartly, fmt.Errorf("events may be missing: %d connections were too many to follow; a filter helps", n)})
	}
	return failed
}

type endpoints struct{ local, peer netip.AddrPort }

// traceLines writes a line for each probe once it is known what became of it.
type traceLines struct {
	w    io.Writer
	seen map[endpoints]bool       // introduced
	open map[endpoints]wire.Event // probes whose outcome is not known yet
}

func newTraceLines(w io.Writer) *traceLines {
	return &traceLines{w: w, seen: map[endpoints]bool{}, open: map[endpoints]wire.Event{}}
}

// end tells of the probes that were on their way when the trace ended.
func (l *traceLines) end() error {
	var errs []error
	for _, e := range slices.SortedFunc(maps.Values(l.open), func(a, b wire.Event) int { return a.Time.Compare(b.Time) }) {
		e.About = e.Kind
		errs = append(errs, l.line(e.Time, e.Local, e.Peer, l.probe(&engine.Traced{Event: &e})+", no answer before the trace ended"))
	}
	return errors.Join(errs...)
}

func (l *traceLines) line(at time.Time, local, peer netip.AddrPort, text string) error {
	_, err := fmt.Fprintf(l.w, "%s  %v → %v  %s\n", at.Local().Format("15:04:05.000"), local, peer, text)
	return err
}

func (l *traceLines) event(t *engine.Traced) error {
	if err := l.introduce(t); err != nil {
		return err
	}
	at := t.Time
	var text string
	delete(l.open, endpoints{t.Local, t.Peer})
	switch t.Kind {
	case wire.Probe, wire.WindowProbe:
		if len(l.open) < wire.DefaultFlows { // of a connection too many, nothing may come any more
			l.open[endpoints{t.Local, t.Peer}] = *t.Event
		}
		return nil // told with its outcome
	case wire.Answer:
		if t.About == wire.Retransmission {
			text = fmt.Sprintf("heard again after %s", count(t.N, "retransmission"))
			break
		}
		at = t.Sent
		text = l.probe(t) + ", answered"
		if t.RTT > 0 {
			text += " after " + latency(t.RTT)
		}
	case wire.Unanswered:
		at = t.Sent
		text = l.probe(t) + ", unanswered"
		switch {
		case t.RateLimited:
			text += " (the peer answers once in 500 ms)"
		case !t.GivesUp.IsZero():
			text += fmt.Sprintf("; gives up in %.1f s", t.GivesUp.Sub(at).Seconds())
		}
	case wire.Retransmission:
		text = fmt.Sprintf("retransmission %d", t.N)
	case wire.GiveUp:
		text = "gives up: reset"
	case wire.Reset:
		delete(l.open, endpoints{t.Peer, t.Local})
		text = "reset"
		if t.RTT > 0 {
			text = fmt.Sprintf("reset, %s after probe %d: it does not know the connection", latency(t.RTT), t.N)
		}
	}
	return l.line(at, t.Local, t.Peer, text)
}

// introduce says once what is known of the prober's socket.
func (l *traceLines) introduce(t *engine.Traced) error {
	at := endpoints{t.Local, t.Peer}
	if t.Socket == nil || l.seen[at] {
		return nil
	}
	l.seen[at] = true
	policy := "policy not known"
	if s := t.Socket.Settings; t.Socket.Known {
		policy = policyText(forecast.Input{KeepAlive: s.KeepAlive, Policy: s.Policy})
	}
	_, err := fmt.Fprintf(l.w, "%s  %v ↔ %v  %s, %s\n", t.Time.Local().Format("15:04:05.000"), t.Local, t.Peer, t.Socket.Owner(), policy)
	return err
}

func (*traceLines) probe(t *engine.Traced) string {
	what := "probe"
	if t.About == wire.WindowProbe {
		what = "window probe"
	}
	if t.Of > 0 {
		return fmt.Sprintf("%s %d of %d", what, t.N, t.Of)
	}
	return fmt.Sprintf("%s %d", what, t.N)
}

func latency(d time.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

// traceJSON writes an object for each event.
type traceJSON struct{ enc *json.Encoder }

func (*traceJSON) end() error { return nil } // a probe is told when it is sent

type jsonTraced struct {
	At          time.Time `json:"at"`
	Local       string    `json:"local"`
	Peer        string    `json:"peer"`
	Event       string    `json:"event"`
	N           int       `json:"n"`
	Of          *int      `json:"of"`
	RTTUS       *int64    `json:"rtt_us"`
	RateLimited bool      `json:"rate_limited,omitempty"`
	GivesUpInS  *float64  `json:"gives_up_in_s"`
	Netns       *string   `json:"netns"`
	Cookie      *string   `json:"cookie"`
}

func (j *traceJSON) event(t *engine.Traced) error {
	line := jsonTraced{
		At: t.Time.UTC(), Local: t.Local.String(), Peer: t.Peer.String(), Event: t.Kind.String(), N: t.N, RateLimited: t.RateLimited,
	}
	if t.Of > 0 {
		line.Of = &t.Of
	}
	if t.RTT > 0 {
		line.RTTUS = new(t.RTT.Microseconds())
	}
	if !t.GivesUp.IsZero() {
		line.GivesUpInS = new(t.GivesUp.Sub(t.Time).Round(time.Millisecond).Seconds())
	}
	if t.Socket != nil {
		line.Netns, line.Cookie = new(fmt.Sprint(t.Socket.ID.NetNS)), new(fmt.Sprint(t.Socket.ID.Cookie))
	}
	return j.enc.Encode(line)
}
