package advise

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"deadpeer/forecast"
	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/keepalive"
)

// Options say where to look. Zero values mean this host.
type Options struct {
	Root     string // below which configuration is read, also that of containers (each program's own root)
	ProcRoot string // where procfs is mounted (/proc)
}

// Report is what a survey found.
type Report struct {
	Programs []Program     // those that need most first
	Notes    []engine.Note // what could not be seen
	How      []string      // by what means things were found out
}

// Program is one program with connections: one instance of a server, or all
// processes of one name.
type Program struct {
	Name        string    // printable; "" when the owner is not known
	Software    *Software // nil when it is not in the list
	PID         int32     // of the process that was started first, 0 when there are several
	Unit        string    // systemd unit that all its processes run in, "" when there is none
	Connections int
	Blind       int           // keepalive is off: a peer that vanishes is never noticed
	Slow        int           // noticed, but later than by the policy
	Unknown     int           // settings not readable
	Worst       time.Duration // longest detection time of those not blind
	Advice      Advice        // of Software
	Config      *Config       // nil when nobody knows how to read it
	Compared    int           // open connections the configuration tells of
	Differ      int           // those of them that have other settings
	Mend        bool          // there is something to do
}

// Enough reports whether the configuration gives the policy or better
// already, so that only what is open is to be mended.
func (p *Program) Enough(policy keepalive.Policy) bool {
	return p.Config != nil && p.Config.Within > 0 && p.Config.Within <= forecast.DetectionTime(policy) && len(p.Config.Harmful) == 0
}

// Survey groups the connections that r selects by program and says what each
// needs for the policy p. It needs what engine.Reader.Scan needs.
func Survey(ctx context.Context, r engine.Reader, req engine.Request, p keepalive.Policy, o Options) (*Report, error) {
	list, err := List()
	if err != nil {
		return nil, err
	}
	req.Settings, req.NoOwners = true, false
	snap, err := r.Scan(ctx, req)
	if err != nil {
		return nil, err
	}
	s := survey{list: list, policy: p, processes: newProcesses(o), groups: map[groupKey]*group{}}
	for c := range snap.All() {
		s.add(c)
	}
	report := &Report{Notes: snap.Notes, How: snap.How}
	for _, g := range s.groups {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := s.finish(g); err != nil {
			return nil, err
		}
		report.Programs = append(report.Programs, g.Program)
	}
	slices.SortFunc(report.Programs, func(a, b Program) int {
		return cmp.Or(-cmp.Compare(number(a.Mend), number(b.Mend)), -cmp.Compare(a.Blind, b.Blind), -cmp.Compare(a.Slow, b.Slow),
			-cmp.Compare(a.Connections, b.Connections), cmp.Compare(a.Name, b.Name), cmp.Compare(a.PID, b.PID))
	})
	return report, nil
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// groupKey tells programs apart: servers by their first process, since each
// has its own configuration; others by name.
type groupKey struct {
	name string
	pid  int32
}

type group struct {
	Program
	open []open
}

// open is what is compared with the configuration.
type open struct {
	port     uint16
	settings keepalive.Settings
}

type survey struct {
	list      []Software
	policy    keepalive.Policy
	processes *processes
	groups    map[groupKey]*group
}

// add counts a connection. Only those that may idle for ever matter.
func (s *survey) add(c *engine.Connection) {
	switch orphan := c.Sock.Inode == 0; {
	case c.Sock.State == conn.Established, c.Sock.State == conn.CloseWait:
	case c.Sock.State == conn.FinWait2 && !orphan:
	default:
		return
	}
	g := s.group(c)
	g.Connections++
	switch {
	case c.KeepAliveKnown && !c.Settings.KeepAlive:
		g.Blind++
	case !c.Known:
		g.Unknown++
		return
	default:
		d := forecast.DetectionTime(c.Settings.Policy)
		g.Worst = max(g.Worst, d)
		if d > forecast.DetectionTime(s.policy) {
			g.Slow++
		}
	}
	g.open = append(g.open, open{c.Sock.LocalPort, c.Settings})
}

func (s *survey) group(c *engine.Connection) *group {
	var key groupKey
	var program Program
	if len(c.Owners) > 0 {
		pid := oldest(c.Owners)
		comm := s.processes.comm(pid)
		program = Program{Name: conn.Printable(comm), Software: recognise(s.list, comm)}
		if process := c.Process(pid); process != nil {
			program.Unit = conn.Printable(process.Unit)
		}
		key.name = comm
		if w := program.Software; w != nil {
			key.name = w.Name
			if w.Role == Server {
				program.PID = s.processes.first(pid, func(comm string) bool { return recognise(s.list, comm) == w })
				key.pid = program.PID
			}
		} else if s.processes.isGo(pid) {
			program.Software = s.named("go")
		}
	}
	g := s.groups[key]
	if g == nil {
		g = &group{Program: program}
		s.groups[key] = g
	}
	if g.Unit != program.Unit {
		g.Unit = ""
	}
	return g
}

// oldest is the owner a shared socket most likely came from; not this process,
// which may have inherited one from the shell.
func oldest(owners []conn.Owner) int32 {
	pid := owners[0].PID
	for _, o := range owners[1:] {
		if self := int32(os.Getpid()); pid == self || o.PID < pid && o.PID != self {
			pid = o.PID
		}
	}
	return pid
}

func (s *survey) named(id string) *Software {
	for i := range s.list {
		if s.list[i].ID == id {
			return &s.list[i]
		}
	}
	return nil
}

// finish reads the configuration and decides what there is to do.
func (s *survey) finish(g *group) (err error) {
	if g.Software != nil {
		if g.Advice, err = g.Software.Render(s.policy); err != nil {
			return err
		}
		if g.PID != 0 {
			place, err := s.processes.place(g.PID)
			if err != nil {
				g.Config = &Config{Problems: []string{conn.Printable(fmt.Sprint(err))}}
			} else {
				g.Config = readConfig(g.Software.ID, place)
			}
		}
	}
	if g.Config != nil {
		for _, o := range g.open {
			if agrees, known := g.Config.agrees(o.port, o.settings); known {
				g.Compared++
				if !agrees {
					g.Differ++
				}
			}
		}
	}
	asks := g.Config != nil && g.Config.Asks && g.Enough(s.policy)
	g.Mend = g.Blind+g.Slow > 0 && !asks || g.Config != nil && len(g.Config.Harmful) > 0
	return nil
}
