package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"deadpeer/internal/release"
	"deadpeer/internal/session"
)

const (
	endPatience    = 2 * time.Second // for a session to go after the database's own kill
	socketPatience = 5 * time.Second // and after its socket was destroyed
	endPoll        = 10 * time.Millisecond
	endPollMost    = 200 * time.Millisecond
)

// ending is a planned connection with a session.
type ending struct {
	planned
	tie   *Tie
	ended bool // the database has agreed
}

// endSessions ends the planned connections that have a session through their
// database, and settles their outcomes. What is left for the socket it gives
// back: everything without a session, and with ViaAuto what the database
// would not end.
func (p *Plan) endSessions(ctx context.Context) []planned {
	var left []planned
	var ends []*ending
	for _, item := range p.items {
		t := p.Snapshot.tieOf(item.row)
		switch {
		case p.via == ViaDatabase && (t == nil || t.shared):
			p.settle(item.row, "", errors.New("no database session is known for it (--via database)"))
		case t == nil || t.shared || p.via == ViaSocket:
			left = append(left, item)
		case ctx.Err() != nil:
			p.settle(item.row, "", ctx.Err())
		default:
			end := &ending{planned: item, tie: t}
			kept, err := p.endSession(ctx, end)
			switch {
			case kept != nil:
				p.settle(item.row, "", kept)
			case err == nil:
				end.ended = true
				ends = append(ends, end)
			case p.via == ViaDatabase:
				p.settle(item.row, "", err)
			default:
				if !errors.Is(err, session.ErrNoEnd) && !errors.Is(err, session.ErrGone) {
					p.note("%v; its socket was ended instead", err)
				}
				left = append(left, item)
			}
		}
	}
	p.awaitGone(ctx, ends, endPatience, func(end *ending) {
		end.ended = false
		p.destroyRest(ctx, end.planned)
		p.settle(end.row, ViaDatabase, nil)
	})
	for _, end := range ends {
		switch {
		case !end.ended:
		case p.via == ViaDatabase:
			p.settle(end.row, "", errors.New("the database agreed to end session "+end.tie.Session.ID+", but still has it"))
		default:
			left = append(left, end.planned)
		}
	}
	return left
}

// endSession asks the database, the evidence read again right before. kept is
// why the connection is left alone.
func (p *Plan) endSession(ctx context.Context, end *ending) (kept, err error) {
	err = end.tie.look.db.End(ctx, end.tie.Session, func() error {
		if kept = end.stale(); kept == nil {
			kept = release.Confirm(ctx, p.diag[end.item.Sock.NetNS], end.item)
		}
		return kept
	})
	return kept, err
}

// destroyRest takes away what the database left of the connection: Firebird
// leaves it established, others in FIN-WAIT-1 with nobody to acknowledge.
// That the session is gone is what counts.
func (p *Plan) destroyRest(ctx context.Context, item planned) {
	release.Act(ctx, p.diag[item.item.Sock.NetNS], nil, []release.Item{item.item}, func(int, error) {})
}

// verifySessions sees that the databases have noticed the end of the sockets.
func (p *Plan) verifySessions(ctx context.Context, items []planned) {
	var ends []*ending
	for _, item := range items {
		if t := p.Snapshot.tieOf(item.row); t != nil && p.Snapshot.outcomes[item.row].Done {
			ends = append(ends, &ending{planned: item, tie: t, ended: true})
		}
	}
	p.awaitGone(ctx, ends, socketPatience, func(end *ending) { end.ended = false })
	for _, end := range ends {
		if end.ended {
			p.settle(end.row, ViaSocket, errors.New("the socket was destroyed, but the database still has session "+end.tie.Session.ID))
		}
	}
}

// awaitGone looks until the databases show the sessions no more, at most for
// patience, and calls gone for each that went. A database that does not answer
// keeps its sessions.
func (p *Plan) awaitGone(ctx context.Context, ends []*ending, patience time.Duration, gone func(*ending)) {
	byLook := map[*look][]*ending{}
	for _, end := range ends {
		byLook[end.tie.look] = append(byLook[end.tie.look], end)
	}
	for l, waiting := range byLook {
		deadline := time.Now().Add(patience)
		for pause := endPoll; len(waiting) > 0; pause = min(2*pause, endPollMost) {
			view, err := l.db.Look(ctx)
			if err != nil {
				break
			}
			still := waiting[:0]
			for _, end := range waiting {
				if view.Has(end.tie.Session) {
					still = append(still, end)
				} else {
					gone(end)
				}
			}
			if waiting = still; time.Now().Add(pause).After(deadline) {
				break
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
		}
	}
}

// viaSocket is how an outcome names the socket's end: not at all where no
// database was looked into.
func (p *Plan) viaSocket() Via {
	if len(p.Snapshot.ties) == 0 {
		return ""
	}
	return ViaSocket
}

func (p *Plan) note(format string, args ...any) {
	p.Snapshot.Notes = append(p.Snapshot.Notes, Note{Text: fmt.Sprintf(format, args...)})
}

// settle books an outcome. An error means that the connection, or its
// session, was left.
func (p *Plan) settle(row uint32, via Via, err error) {
	o := Outcome{Action: actionRelease, Via: via, Done: err == nil}
	if err != nil {
		o.Error = err.Error()
	}
	p.Snapshot.outcomes[row] = o
}
