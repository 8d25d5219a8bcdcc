package session

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// zeo asks a ZEO server how it is: "ruok" instead of the handshake, which it
// answers with its counters as JSON, and closes (ZEO, StorageServer). There is
// no session in it, and no peer: what holds the commit lock shows as the
// session of its storage.
type zeo struct {
	source Source
	dial   dialer
}

// maxZEO bounds the answer.
const maxZEO = 1 << 20

func (z zeo) look(ctx context.Context, _ *sql.Conn) (*View, error) {
	c, err := z.dial.DialContext(ctx, "tcp", z.source.address())
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }() // it was only read
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := c.Write([]byte("\x00\x00\x00\x04ruok")); err != nil {
		return nil, err
	}
	answer, err := readZEO(c)
	if err != nil {
		return nil, err
	}
	sessions, err := parseZEO(answer, time.Now())
	if err != nil {
		return nil, err
	}
	v := &View{Server: "ZEO", Port: z.source.port, Notes: []Note{{Text: fmt.Sprintf("%s does not tell which connection holds its commit lock", z.source)}}}
	for _, s := range sessions {
		if z.source.database == "" || z.source.database == s.ID {
			v.Sessions = append(v.Sessions, s)
		}
	}
	if len(v.Sessions) == 0 {
		return nil, fmt.Errorf("no storage %q", z.source.database)
	}
	return v, nil
}

// readZEO skips the protocol's name, which the server sends unasked.
func readZEO(r io.Reader) ([]byte, error) {
	for range 2 {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return nil, err
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > maxZEO {
			return nil, errors.New("not a ZEO server: it announces too long a message")
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(r, body); err != nil {
			return nil, err
		}
		if n > 0 && body[0] == '{' {
			return body, nil
		}
	}
	return nil, errors.New("not a ZEO server: no answer to ruok")
}

// parseZEO reads the counters of every storage.
func parseZEO(answer []byte, now time.Time) ([]Session, error) {
	var storages map[string]struct {
		LockTime *float64 `json:"lock_time"` // seconds since 1970
		Waiting  int64    `json:"waiting"`
	}
	if err := json.Unmarshal(answer, &storages); err != nil {
		return nil, fmt.Errorf("not a ZEO server: %w", err)
	}
	var list []Session
	for name, c := range storages {
		s := Session{Engine: ZEO, ID: text(name, maxName), Database: text(name, maxName), State: Idle}
		if c.LockTime != nil {
			age := min(max(float64(now.UnixMilli())-*c.LockTime*1000, 0), float64(1<<53))
			s.State, s.InTransaction, s.Transaction = Active, true, millis(int64(age))
			s.Locks = []string{"commit lock"}
			if s.Blocked = int(min(max(c.Waiting, 0), maxSessions)); s.Blocked > 0 {
				s.BlockedFor = s.Transaction // at most
			}
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b Session) int { return cmp.Compare(a.ID, b.ID) })
	return list, nil
}

func (zeo) end(context.Context, *sql.Conn, *Session, func() error) error { return ErrNoEnd }

func (zeo) grant(error) string { return "" }
