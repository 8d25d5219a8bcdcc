package cli

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/internal/verdict"
)

// table is the output as aligned columns, with counts at the foot. The first
// connections set the widths; a wider cell further down pushes its line.
type table struct {
	wide, colour, asked, acted, owners, sessions bool
	namespaces                                   bool             // there are several
	attached                                     *engine.Attached // what is shown, when that is one
	limit                                        int              // columns of the terminal; 0: as many as it takes

	w      *bufio.Writer
	cols   []column
	widths [maxColumns]int
	names  map[int32]string // of processes, printable
	owner  int32            // whose name was looked for last
	named  string
	text   []byte // the cells of all lines in early
	early  []line // those that set the widths
	began  bool   // the widths are set
	others int    // connections without a line
}

// line is where the cells of a connection end in table.text.
type line struct {
	verdict conn.Verdict
	ends    [maxColumns]int
}

// earlyLines set the widths.
const earlyLines = 500

const maxColumns = 26

// column is one column: its head, its cell, and whether it is flushed right.
type column struct {
	head  string
	cell  func(t *table, b []byte, c *engine.Connection) []byte
	right bool
}

func (t *table) columns() []column {
	if t.attached != nil && !t.wide {
		// What was done to which connection, in 80 columns of a terminal.
		return []column{
			{"LOCAL", localCell, false},
			{"PEER", peerCell, false},
			{"OWNER", ownerCell, false},
			{"KEEPALIVE", keepaliveCell, false},
			{"OUTCOME", outcomeCell, false},
		}
	}
	cols := []column{
		{"VERDICT", verdictCell, false},
		{"STATE", stateCell, false},
	}
	if t.namespaces {
		cols = append(cols, column{"NAMESPACE", namespaceCell, false})
	}
	cols = append(cols, column{"LOCAL", localCell, false}, column{"PEER", peerCell, false})
	if t.owners {
		cols = append(cols, column{"OWNER", ownerCell, false})
	}
	if t.sessions {
		cols = append(cols, sessionColumns()...)
	}
	cols = append(cols, column{"HEARD", heardCell, true})
	if !t.asked || t.wide {
		cols = append(cols, column{"KEEPALIVE", keepaliveCell, false})
	}
	if t.wide {
		cols = append(cols, column{"SET BY", originCell, false})
	}
	cols = append(cols, column{"GIVES UP IN", forecastCell, true})
	if t.wide {
		cols = append(cols,
			column{"TIMER", timerCell, false}, column{"RTT", rttCell, true},
			column{"SEND-Q", sendCell, true}, column{"RECV-Q", recvCell, true},
			column{"MEMORY", memoryCell, true}, column{"UNIT", unitCell, false},
			column{"NETNS", netnsCell, false}, column{"COOKIE", cookieCell, false})
	}
	if t.asked || t.wide {
		cols = append(cols, column{"REASON", reasonCell, false})
	}
	if t.acted {
		cols = append(cols, column{"OUTCOME", outcomeCell, false})
	}
	return cols
}

func newTable(w *bufio.Writer, t table) *table {
	t.w, t.names = w, map[int32]string{}
	t.cols = t.columns()
	t.colour = t.colour && t.cols[0].head == "VERDICT" // what it stands for
	for i, c := range t.cols {
		t.widths[i] = len(c.head)
	}
	return &t
}

func (t *table) add(c *engine.Connection) error {
	if t.acted && t.attached == nil && c.Outcome == nil && c.Judgement.Verdict != conn.Dead && c.Judgement.Verdict != conn.Suspect {
		t.others++ // release neither does nor may soon do anything about it
		return nil
	}
	if t.began {
		return t.put(c.Judgement.Verdict, func(b []byte, i int) []byte { return t.cols[i].cell(t, b, c) })
	}
	l := line{verdict: c.Judgement.Verdict}
	for i := range t.cols {
		start := len(t.text)
		t.text = t.cols[i].cell(t, t.text, c)
		l.ends[i] = len(t.text)
		if i < len(t.cols)-1 {
			t.widths[i] = max(t.widths[i], width(t.text[start:]))
		}
	}
	if t.early = append(t.early, l); len(t.early) < earlyLines {
		return nil
	}
	return t.begin()
}

// begin writes the head and the lines that set the widths.
func (t *table) begin() error {
	t.began = true
	err := t.put(noVerdict, func(b []byte, i int) []byte { return append(b, t.cols[i].head...) })
	start := 0
	for _, l := range t.early {
		err = errors.Join(err, t.put(l.verdict, func(b []byte, i int) []byte {
			b = append(b, t.text[start:l.ends[i]]...)
			start = l.ends[i]
			return b
		}))
	}
	t.early, t.text = nil, nil
	return err
}

func (t *table) end(sum *engine.Summary) error {
	if !t.began && len(t.early) > 0 {
		if err := t.begin(); err != nil {
			return err
		}
	}
	if t.began {
		_ = t.w.WriteByte('\n')
	}
	return t.foot(t.w, sum)
}

// width counts what a terminal shows: escaped text is plain ASCII or letters.
func width(b []byte) int {
	const ones = 0x0101010101010101
	n := len(b)
	for ; len(b) >= 8; b = b[8:] { // bytes that go on with a letter are 10xxxxxx
		x := binary.LittleEndian.Uint64(b)
		n -= bits.OnesCount64(x >> 7 &^ (x >> 6) & ones)
	}
	for _, c := range b {
		if c&0xc0 == 0x80 {
			n--
		}
	}
	return n
}

const spaces = "                                                                "

func pad(b []byte, n int) []byte {
	for ; n > len(spaces); n -= len(spaces) {
		b = append(b, spaces...)
	}
	return append(b, spaces[:max(n, 0)]...)
}

// further begins the rest of a line that the terminal is too narrow for.
const further = "\n         "

// noVerdict is what the head has.
const noVerdict = ^conn.Verdict(0)

// put writes a line of what cell appends.
func (t *table) put(v conn.Verdict, cell func(b []byte, i int) []byte) error {
	b := t.w.AvailableBuffer()
	at := 0 // where the line on the screen is
	for i := range t.cols {
		end := len(b)
		if i > 0 {
			b = append(b, "  "...)
		}
		start := len(b)
		b = cell(b, i)
		size := width(b[start:])
		gap := t.widths[i] - size
		if i < len(t.cols)-1 {
			size += max(gap, 0)
		}
		at += start - end
		if t.limit > 0 && at+size > t.limit && i > 0 {
			b = slices.Replace(b, end, start, []byte(further)...)
			start = end + len(further)
			at = len(further) - 1
		}
		at += size
		if i == 0 && t.colour && v != noVerdict {
			b = slices.Insert(b, start, []byte(ansi(v))...)
			b = append(b, "\x1b[0m"...)
		}
		switch {
		case gap <= 0:
		case t.cols[i].right:
			end := len(b)
			b = pad(b, gap)
			copy(b[start+gap:], b[start:end])
			pad(b[start:start], gap)
		case i < len(t.cols)-1:
			b = pad(b, gap)
		}
	}
	_, err := t.w.Write(append(b, '\n'))
	return err
}

// writeGrid writes lines of text in columns, each under its head, as a table of
// connections has them.
func writeGrid(w *bufio.Writer, limit int, head []string, lines [][]string) error {
	t := &table{w: w, limit: limit, cols: make([]column, len(head))}
	lines = slices.Insert(lines, 0, head)
	for _, line := range lines {
		for i, cell := range line {
			t.widths[i] = max(t.widths[i], width([]byte(cell)))
		}
	}
	for _, line := range lines {
		if err := t.put(noVerdict, func(b []byte, i int) []byte { return append(b, line[i]...) }); err != nil {
			return err
		}
	}
	return nil
}

// foot counts, and names what is worth knowing: the blind and the slowest.
func (t *table) foot(w *bufio.Writer, sum *engine.Summary) error {
	if sum.Connections == 0 {
		text := "no connections"
		if t.attached != nil && t.attached.Changed > 0 {
			text = "its connections are in network namespaces that cannot be looked into from here"
		}
		_, err := fmt.Fprintln(w, text)
		return err
	}
	parts := []string{count(sum.Connections, "connection")}
	for _, v := range conn.Verdicts() {
		if n := sum.ByVerdict[v]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, v))
		}
	}
	fmt.Fprintln(w, strings.Join(parts, ", "))
	if t.others > 0 {
		fmt.Fprintf(w, "%d not listed, neither dead nor suspect: -o json has all\n", t.others)
	}
	if sum.Blind > 0 {
		fmt.Fprintf(w, "%d blind: the kernel would never give them up\n", sum.Blind)
	} else {
		fmt.Fprintln(w, "0 blind")
	}
	if sum.Worst > 0 {
		others := ""
		if sum.Blind > 0 {
			others = " of the others"
		}
		fmt.Fprintf(w, "worst detection time%s: %s\n", others, verdict.Duration(sum.Worst))
	}
	if sum.Unforeseen > 0 {
		fmt.Fprintf(w, "%d without a forecast: settings not read, or no rule for what they are in\n", sum.Unforeseen)
	}
	if t.acted && t.attached == nil {
		fmt.Fprintf(w, "released %d, planned %d, dead but left alone %d\n", sum.Released, sum.Planned, sum.Left)
	}
	return nil
}
