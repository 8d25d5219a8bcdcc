package cli

import (
	"bufio"
	"encoding/json"
	"io"
	"math"
	"os"
	"strconv"
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
)

// The JSON contract. 64-bit numbers are strings, what is not known is null,
// and every time ends in its unit.

func newEncoder(w io.Writer) *json.Encoder {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false) // it goes to no browser
	return e
}

type jsonConnection struct {
	Netns     string        `json:"netns"`
	Cookie    string        `json:"cookie"`
	Family    string        `json:"family"`
	State     string        `json:"state"`
	Local     string        `json:"local"`
	Peer      string        `json:"peer"`
	Inode     uint32        `json:"inode"`
	UID       uint32        `json:"uid"`
	Owners    []jsonOwner   `json:"owners"`
	Policy    jsonPolicy    `json:"policy"`
	Timer     jsonTimer     `json:"timer"`
	HeardMS   *int64        `json:"heard_ms"`
	RTTUS     *uint32       `json:"rtt_us"`
	RTOMS     *uint32       `json:"rto_ms"`
	Backoff   *uint8        `json:"backoff"`
	Unacked   *uint32       `json:"unacked"`
	SendQueue uint32        `json:"send_queue"`
	RecvQueue uint32        `json:"recv_queue"`
	Verdict   string        `json:"verdict"`
	Reason    string        `json:"reason"`
	Evidence  *jsonEvidence `json:"evidence"`
	Forecast  *jsonForecast `json:"forecast"`
	Session   *jsonSession  `json:"session"`
	Outcome   *jsonOutcome  `json:"outcome,omitempty"`
}

type jsonOwner struct {
	PID       int32   `json:"pid"`
	FD        int32   `json:"fd"`
	Comm      string  `json:"comm"`
	Unit      *string `json:"unit"`
	Container *string `json:"container"`
}

type jsonPolicy struct {
	KeepAlive     *bool   `json:"keepalive"`
	IdleS         *int64  `json:"idle_s"`
	IntervalS     *int64  `json:"interval_s"`
	Probes        *int    `json:"probes"`
	UserTimeoutMS *int64  `json:"user_timeout_ms"`
	Known         bool    `json:"known"`
	Origin        *string `json:"origin"`
}

type jsonTimer struct {
	Kind        string  `json:"kind"`
	ExpiresMS   *uint32 `json:"expires_ms"`
	Retransmits uint8   `json:"retransmits"`
}

type jsonEvidence struct {
	Questions   int      `json:"questions"`
	Unanswered  int      `json:"unanswered"`
	SilenceMS   int64    `json:"silence_ms"`
	AnsweredUS  *int64   `json:"answered_us"`
	FalseChance *float64 `json:"false_chance"`
}

// jsonForecast counts from taken_at. in_s is expected_s where that is known,
// else earliest_s. errno is null where nobody is told.
type jsonForecast struct {
	GivesUp   bool     `json:"gives_up"`
	InS       *float64 `json:"in_s"`
	EarliestS *float64 `json:"earliest_s"`
	LatestS   *float64 `json:"latest_s"`
	ExpectedS *float64 `json:"expected_s"`
	Rule      string   `json:"rule"`
	Errno     *string  `json:"errno"`
}

type jsonOutcome struct {
	Action  string      `json:"action"`
	Via     engine.Via  `json:"via,omitempty"` // where databases were looked into
	Done    bool        `json:"done"`
	Error   *string     `json:"error"`
	Planned *jsonValues `json:"planned,omitempty"` // what a dry run's attaching would give it
}

// encoder turns connections into lines. Names are made printable once.
type encoder struct {
	snap  *engine.Snapshot
	procs map[int32]jsonOwner
}

func (e *encoder) connection(c *engine.Connection) jsonConnection {
	s := c.Sock
	j := jsonConnection{
		Netns: strconv.FormatUint(uint64(s.NetNS), 10), Cookie: strconv.FormatUint(s.Cookie, 10),
		Family: s.Family.String(), State: s.State.String(), Local: s.Local().String(), Peer: s.Peer().String(),
		Inode: s.Inode, UID: s.UID, Owners: make([]jsonOwner, 0, len(c.Owners)), SendQueue: s.SendQueue, RecvQueue: s.RecvQueue,
		Timer:   jsonTimer{Kind: s.Timer.String(), Retransmits: s.Retransmits},
		Verdict: c.Judgement.Verdict.String(), Reason: c.Reason(), Policy: policyOf(c),
	}
	for _, o := range c.Owners {
		j.Owners = append(j.Owners, e.owner(c, o))
	}
	if s.Timer != conn.TimerNone {
		j.Timer.ExpiresMS = &s.TimerMS
	}
	if d, ok := s.Heard(); ok {
		j.HeardMS = new(d.Milliseconds())
	}
	if s.HasInfo {
		j.RTOMS, j.Backoff, j.Unacked = new(s.RTOUS/1000), &s.Backoff, &s.Unacked
		if s.RTTUS > 0 {
			j.RTTUS = &s.RTTUS
		}
	}
	if e.snap.Asked {
		v := c.Evidence
		j.Evidence = &jsonEvidence{Questions: v.Questions, Unanswered: v.Unanswered, SilenceMS: v.Silence.Milliseconds()}
		if v.Answered {
			j.Evidence.AnsweredUS = new(v.AnsweredAfter.Microseconds())
		}
		if f := c.Judgement.FalseChance; !math.IsNaN(f) {
			j.Evidence.FalseChance = &f
		}
	}
	if f, ok := c.Forecast(); ok {
		j.Forecast = forecastOf(f)
	}
	if c.Session != nil {
		j.Session = sessionOf(c.Session, c.Client)
	}
	if o := c.Outcome; o != nil {
		j.Outcome = &jsonOutcome{Action: o.Action, Via: o.Via, Done: o.Done}
		if o.Error != "" {
			j.Outcome.Error = &o.Error
		}
		if o.Planned != nil {
			j.Outcome.Planned = new(valuesOf(*o.Planned))
		}
	}
	return j
}

func forecastOf(f forecast.Forecast) *jsonForecast {
	j := jsonForecast{GivesUp: f.GivesUp, Rule: string(f.Rule)}
	if !f.GivesUp {
		return &j
	}
	j.InS, j.EarliestS, j.LatestS = jsonSeconds(soonest(f)), jsonSeconds(f.Earliest), jsonSeconds(f.Latest)
	if f.Expected != 0 {
		j.ExpectedS = jsonSeconds(f.Expected)
	}
	if f.Errno != "" {
		j.Errno = &f.Errno
	}
	return &j
}

// jsonSeconds is a time in seconds, to the millisecond.
func jsonSeconds(d time.Duration) *float64 { return new(math.Round(d.Seconds()*1000) / 1000) }

func policyOf(c *engine.Connection) jsonPolicy {
	p := jsonPolicy{Known: c.Known}
	if c.KeepAliveKnown {
		p.KeepAlive = &c.Settings.KeepAlive
	}
	if c.Known {
		s := c.Settings
		p.IdleS, p.IntervalS = new(int64(s.Idle/time.Second)), new(int64(s.Interval/time.Second))
		p.Probes, p.UserTimeoutMS = &c.Settings.Probes, new(s.UserTimeout.Milliseconds())
		if c.Origin != engine.OriginUnknown {
			p.Origin = new(c.Origin.String())
		}
	}
	return p
}

func (e *encoder) owner(c *engine.Connection, o conn.Owner) jsonOwner {
	j, ok := e.procs[o.PID]
	if !ok {
		j.PID = o.PID
		if p := c.Process(o.PID); p != nil {
			j.Comm = conn.Printable(p.Comm)
			if p.Unit != "" {
				j.Unit = new(conn.Printable(p.Unit))
			}
			if p.Container != "" {
				j.Container = new(conn.Printable(p.Container))
			}
		}
		e.procs[o.PID] = j
	}
	j.FD = o.FD
	return j
}

// jsonLines is the output with one connection a line.
type jsonLines struct {
	encoder
	out *json.Encoder
}

func newJSONLines(w *bufio.Writer, snap *engine.Snapshot) *jsonLines {
	return &jsonLines{encoder: encoder{snap: snap, procs: map[int32]jsonOwner{}}, out: newEncoder(w)}
}

func (j *jsonLines) add(c *engine.Connection) error { return j.out.Encode(j.connection(c)) }

func (j *jsonLines) end(*engine.Summary) error { return nil }

type jsonSummary struct {
	Connections int            `json:"connections"`
	Verdicts    map[string]int `json:"verdicts"`
	Blind       int            `json:"blind"`
	Unforeseen  int            `json:"without_forecast"`
	WorstS      *float64       `json:"worst_detection_s"`
	Released    int            `json:"released"`
	Planned     int            `json:"planned"`
	Left        int            `json:"left_alone"`
}

func newJSONSummary(sum *engine.Summary) jsonSummary {
	s := jsonSummary{
		Connections: sum.Connections, Verdicts: map[string]int{}, Blind: sum.Blind, Unforeseen: sum.Unforeseen,
		Released: sum.Released, Planned: sum.Planned, Left: sum.Left,
	}
	for _, v := range conn.Verdicts() {
		s.Verdicts[v.String()] = sum.ByVerdict[v]
	}
	if sum.Worst > 0 {
		s.WorstS = new(sum.Worst.Seconds())
	}
	return s
}

// jsonObject is the output as one object; the summary, known last, comes last.
type jsonObject struct {
	encoder
	w        *bufio.Writer
	takenAt  time.Time
	n        int
	attached *jsonAttached
}

func newJSON(w *bufio.Writer, snap *engine.Snapshot) *jsonObject {
	return &jsonObject{encoder: encoder{snap: snap, procs: map[int32]jsonOwner{}}, w: w, takenAt: snap.TakenAt}
}

// jsonHead begins every object.
type jsonHead struct {
	Schema  int    `json:"schema"`
	Host    string `json:"host"`
	TakenAt string `json:"taken_at"`
}

func newJSONHead(takenAt time.Time) jsonHead {
	host, _ := os.Hostname() // without one there is none to tell
	return jsonHead{1, host, takenAt.Format(time.RFC3339Nano)}
}

func (j *jsonObject) head() error {
	head, err := json.Marshal(struct {
		jsonHead
		*jsonAttached
	}{newJSONHead(j.takenAt), j.attached})
	if err != nil {
		return err
	}
	_, _ = j.w.Write(head[:len(head)-1])
	_, err = j.w.WriteString(`,"connections":[`)
	return err
}

func (j *jsonObject) add(c *engine.Connection) error {
	if j.n == 0 {
		j.takenAt = c.TakenAt()
		if err := j.head(); err != nil {
			return err
		}
	} else {
		_ = j.w.WriteByte(',')
	}
	j.n++
	b, err := json.Marshal(j.connection(c))
	if err != nil {
		return err
	}
	_ = j.w.WriteByte('\n')
	_, err = j.w.Write(b)
	return err
}

func (j *jsonObject) end(sum *engine.Summary) error {
	if j.n == 0 {
		if err := j.head(); err != nil {
			return err
		}
	}
	tail, err := json.Marshal(newJSONSummary(sum))
	if err != nil {
		return err
	}
	_, _ = j.w.WriteString("],\n\"summary\":")
	_, _ = j.w.Write(tail)
	_, err = j.w.WriteString("}\n")
	return err
}
