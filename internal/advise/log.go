package advise

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"deadpeer/internal/conn"
)

// LogPlaces are where Firebird and InterBase usually keep their log.
func LogPlaces() []string {
	return []string{
		"/var/log/firebird/firebird3.0.log", "/var/log/firebird/firebird4.0.log", "/var/log/firebird/firebird.log",
		"/var/lib/firebird/3.0/system/firebird.log", "/opt/firebird/firebird.log", "/opt/interbase/interbase.log",
	}
}

// LogSummary counts the network errors of a firebird.log or interbase.log.
type LogSummary struct {
	From, To time.Time // first and last entry that has a time; zero without
	Entries  int
	Hosts    []HostErrors // those with most errors first
	Others   HostErrors   // of the hosts beyond the bound of what is kept apart
}

// HostErrors are the errors on connections of one client.
type HostErrors struct {
	Host     string // printable; "" where the log does not name the client
	Resets   int    // 104 (Unix) and 10054 (Windows), ECONNRESET
	Timeouts int    // 110 and 10060, ETIMEDOUT: given up by keepalive or retransmission
	NetBEUI  int    // 108 and 109 of named pipes on Windows
}

func (h HostErrors) sum() int { return h.Resets + h.Timeouts + h.NetBEUI }

// Total adds up all clients.
func (l *LogSummary) Total() HostErrors {
	total := l.Others
	for _, h := range l.Hosts {
		total.Resets += h.Resets
		total.Timeouts += h.Timeouts
		total.NetBEUI += h.NetBEUI
	}
	total.Host = ""
	return total
}

// Span is the time between first and last entry.
func (l *LogSummary) Span() time.Duration { return l.To.Sub(l.From) }

// Bounds of a log that somebody else writes to.
const (
	maxLogLine  = 64 << 10
	maxLogHosts = 10_000
)

// OpenLog reads a log from a file. Files that are none, such as pipes, are
// refused, and so is what has no entry of such a log: it would pass for one of
// a line on which nothing breaks.
func OpenLog(ctx context.Context, name string) (*LogSummary, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read log %s: not a regular file", conn.Printable(name))
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	defer func() { _ = f.Close() }()
	l, err := ReadLog(ctx, io.LimitReader(f, info.Size())) // see readFile
	if err == nil && l.Entries == 0 {
		err = errors.New("no entry of a firebird.log or interbase.log in it")
	}
	if err != nil {
		return nil, fmt.Errorf("read log %s: %w", conn.Printable(name), err)
	}
	return l, nil
}

// ReadLog reads a log as it comes, keeping the counts only. An entry is a line
// with the server's name and a time, then indented lines of text (gds__log of
// Firebird). Lines that are too long are cut.
func ReadLog(ctx context.Context, r io.Reader) (*LogSummary, error) {
	l := &LogSummary{}
	hosts := map[string]*HostErrors{}
	in := bufio.NewReaderSize(r, maxLogLine)
	for ctx.Err() == nil {
		text, err := in.ReadSlice('\n')
		line := string(text)
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = in.ReadSlice('\n') // the rest of it
		}
		l.line(line, hosts)
		switch {
		case errors.Is(err, io.EOF):
			for _, h := range hosts {
				l.Hosts = append(l.Hosts, *h)
			}
			slices.SortFunc(l.Hosts, func(a, b HostErrors) int {
				return cmp.Or(-cmp.Compare(a.sum(), b.sum()), cmp.Compare(a.Host, b.Host))
			})
			return l, nil
		case err != nil:
			return nil, err
		}
	}
	return nil, ctx.Err()
}

func (l *LogSummary) line(line string, hosts map[string]*HostErrors) {
	if at, ok := entryTime(line); ok {
		l.Entries++
		if l.From.IsZero() || at.Before(l.From) {
			l.From = at
		}
		if at.After(l.To) {
			l.To = at
		}
		return
	}
	number, ok := netError(line)
	if !ok {
		return
	}
	name := clientHost(line)
	h := hosts[name]
	if h == nil {
		if h = &l.Others; len(hosts) < maxLogHosts {
			h = &HostErrors{Host: name}
			hosts[name] = h
		}
	}
	switch number {
	case 104, 10054:
		h.Resets++
	case 110, 10060:
		h.Timeouts++
	case 108, 109:
		h.NetBEUI++
	}
}

// entryTime reads the line that begins an entry: the server's name, perhaps
// "(Client)" or "(Server)", a tab, and the time as ctime(3) writes it.
func entryTime(line string) (time.Time, bool) {
	if line == "" || line[0] == ' ' || line[0] == '\t' {
		return time.Time{}, false
	}
	tab := strings.LastIndexByte(line, '\t')
	if tab < 0 {
		return time.Time{}, false
	}
	at, err := time.Parse("Mon Jan _2 15:04:05 2006", strings.TrimSpace(line[tab+1:]))
	return at, err == nil
}

// netError finds the errno in a line such as "INET/inet_error: read errno =
// 104" or "WNET/wnet_error: ReadFile errno = 109". 108 and 109 count only
// where the line is WNET's: on Linux they are other errors.
func netError(line string) (int, bool) {
	inet, wnet := strings.Contains(line, "INET/"), strings.Contains(line, "WNET/")
	_, rest, ok := strings.Cut(line, "errno = ")
	if !ok || !inet && !wnet {
		return 0, false
	}
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	n, err := strconv.Atoi(rest[:end])
	switch {
	case err != nil:
		return 0, false
	case inet && (n == 104 || n == 10054 || n == 110 || n == 10060):
		return n, true
	case wnet && (n == 108 || n == 109):
		return n, true
	}
	return 0, false
}

// clientHost finds the client in the tail that Firebird 3 and later add:
// ", client host = NAME, address = 10.0.0.9/40112, user = NAME". The address
// is taken when there is one, without its port.
func clientHost(line string) string {
	field := func(name string) string {
		_, rest, ok := strings.Cut(line, ", "+name+" = ")
		if !ok {
			return ""
		}
		rest, _, _ = strings.Cut(rest, ", ")
		return strings.TrimSpace(rest)
	}
	host := field("address")
	if i := strings.LastIndexByte(host, '/'); i >= 0 {
		host = host[:i]
	}
	if host == "" {
		host = field("client host")
	}
	const most = 255 // a host name's longest, RFC 1035 section 2.3.4
	return conn.Printable(host[:min(len(host), most)])
}
