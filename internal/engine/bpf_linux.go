package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"deadpeer/internal/bpf"
	"deadpeer/internal/conn"
	"deadpeer/keepalive"
)

// ownerSearch looks for the owners of connections while the kernel lists
// them: by a BPF program, which tells their settings too, else in procfs.
type ownerSearch struct {
	r      *run
	cancel func()
	begun  chan struct{} // closed when the pass is over or the walk begun, then what follows is set
	pass   *bpfPass      // nil when BPF was not used
	why    error         // why not; nil when not wanted
	walk   *ownerWalk
}

// search begins to look for owners. Stop it.
func (r *run) search(ctx context.Context) *ownerSearch {
	ctx, cancel := context.WithCancel(ctx)
	s := &ownerSearch{r: r, cancel: cancel, begun: make(chan struct{})}
	go func() {
		defer close(s.begun)
		if s.pass, s.why = r.lookInside(ctx); s.pass == nil {
			s.walk = r.walk(ctx)
		}
	}()
	return s
}

func (s *ownerSearch) stop() {
	s.cancel()
	<-s.begun
	if s.walk != nil {
		s.walk.stop()
	}
}

// finish gives the rows of the table, complete now, their owners.
func (s *ownerSearch) finish(start time.Time) error {
	r := s.r
	<-s.begun
	if s.pass != nil {
		r.joinPass(s.pass)
		r.how(start, "found the owners and settings by BPF, %s,", s.pass.from)
		return nil
	}
	if err := r.findOwners(s.walk); err != nil {
		return err
	}
	if s.why != nil {
		r.snap.How = append(r.snap.How, fmt.Sprintf("BPF was not used: %v", s.why))
	}
	r.how(start, "found the owners in %s", r.e.options.ProcRoot)
	return nil
}

// lookInside makes a pass, or none when BPF is not wanted or cannot be used.
func (r *run) lookInside(ctx context.Context) (*bpfPass, error) {
	sockets, err := r.openSockets()
	if err != nil || sockets == nil {
		return nil, err
	}
	p := &bpfPass{from: "pinned"}
	if pinned, why := sockets.Pinned(); !pinned {
		p.from = fmt.Sprintf("loaded for this run alone (%v)", why)
	}
	if err := errors.Join(p.run(ctx, sockets), sockets.Close()); err != nil {
		return nil, err
	}
	return p, nil
}

// openSockets gives the program, or nil when it is not wanted.
func (r *run) openSockets() (*bpf.Sockets, error) {
	o := r.e.options
	if o.NoBPF || o.ProcRoot != DefaultRoot {
		return nil, nil
	}
	// The program tells pids as this process's pid namespace numbers them.
	if self, err := os.Readlink(o.ProcRoot + "/self"); err != nil || self != strconv.Itoa(os.Getpid()) {
		return nil, fmt.Errorf("%s is of another pid namespace", o.ProcRoot)
	}
	return bpf.OpenSockets(bpf.SocketsOptions{})
}

const claimChunk = 1024

// bpfPass is one pass of the BPF program through all descriptors.
type bpfPass struct {
	claims   [][]bpfClaim // claimChunk at a time, so that none is copied
	settings []setting    // that claims point to
	from     string       // where the program came from
}

// bpfClaim is an owner found for a socket, and the socket's settings.
type bpfClaim struct {
	cookie   uint64 // 0 for an MPTCP socket
	netns    uint32
	inode    uint32
	owner    conn.Owner
	settings uint32 // where they are in bpfPass.settings
}

func (p *bpfPass) run(ctx context.Context, sockets *bpf.Sockets) error {
	known := map[setting]uint32{}
	var last bpf.Settings // neighbours are alike
	var at uint32
	return sockets.Each(ctx, func(r *bpf.Record) error {
		if r.Settings != last || len(p.settings) == 0 {
			s := settingOf(r.Settings)
			var ok bool
			if at, ok = known[s]; !ok {
				at = uint32(len(p.settings))
				p.settings = append(p.settings, s)
				known[s] = at
			}
			last = r.Settings
		}
		n := len(p.claims)
		if n == 0 || len(p.claims[n-1]) == claimChunk {
			p.claims = append(p.claims, make([]bpfClaim, 0, claimChunk))
			n++
		}
		p.claims[n-1] = append(p.claims[n-1], bpfClaim{cookie: r.ID.Cookie, netns: r.ID.NetNS, inode: r.Inode, owner: r.Owner, settings: at})
		return nil
	})
}

func settingOf(s bpf.Settings) setting {
	known := setting{Settings: s.Settings, origin: OriginProgram}
	if s.Own == (keepalive.Policy{}) {
		known.origin = OriginHost
	}
	return known
}

// joinPass gives the rows what the pass found. An MPTCP socket is no row: its
// subflows bear its inode, and have no descriptor.
func (r *run) joinPass(p *bpfPass) {
	t := &r.snap.table
	j := &join{table: t}
	booked := make([]uint32, len(p.settings))
	for i, s := range p.settings {
		booked[i] = r.book(s)
	}
	multipath := map[uint32][]conn.Owner{}
	for _, chunk := range p.claims {
		for _, c := range chunk {
			if c.cookie == 0 {
				multipath[c.inode] = append(multipath[c.inode], c.owner)
				continue
			}
			at, ok := r.find(conn.ID{NetNS: c.netns, Cookie: c.cookie})
			if !ok {
				continue // not selected, or of a namespace that was not looked into
			}
			row := t.at(at)
			if row.sock.State == conn.TimeWait {
				continue // stands in for a closed socket and bears its cookie; no descriptor is its own
			}
			j.give(at, c.owner)
			if row.sock.State != conn.Listen {
				row.settings = booked[c.settings]
			}
		}
	}
	if len(multipath) > 0 {
		for i := range t.n {
			if row := t.at(i); row.ownerN == 0 && row.sock.Inode != 0 {
				for _, o := range multipath[row.sock.Inode] {
					j.give(i, o)
				}
			}
		}
	}
	r.named(j)
}
