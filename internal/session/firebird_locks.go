package session

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// maxLockTable bounds what is read of a lock table's print.
const maxLockTable = 16 << 20

// firebirdLockTable asks fb_lock_print, which comes with the server, which
// transaction waits for which: every transaction holds a lock on its own
// number (series 4), and who waits for its end asks for that lock. The server
// must be on this host; needs its user's rights, or root's. A server that
// keeps its lock table elsewhere than by default needs the same FIREBIRD_LOCK
// in our environment.
func firebirdLockTable(ctx context.Context, source Source) (waits map[int64]int64, err error) {
	if ip, err := netip.ParseAddr(source.host); source.host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return nil, errors.New("the URL names no loopback address, so the server may be on another host")
	}
	program, err := exec.LookPath("fb_lock_print")
	if err != nil {
		return nil, errors.New("no fb_lock_print here")
	}
	cmd := exec.CommandContext(ctx, program, "-d", source.database, "-l", "-s", "4")
	cmd.WaitDelay = time.Second
	var out, complaint limited
	out.left, complaint.left = maxLockTable, maxStatement
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("fb_lock_print: %w: %s", err, complaint.String())
	}
	return parseLockTable(out.Bytes()), nil
}

// limited keeps the beginning of what is written.
type limited struct {
	bytes.Buffer
	left int
}

// Write keeps what fits, and takes the rest.
func (l *limited) Write(p []byte) (int, error) {
	n, _ := l.Buffer.Write(p[:min(len(p), l.left)]) // never fails
	l.left -= n
	return len(p), nil
}

// parseLockTable gives the transaction that is waited for by the transaction
// that waits. A line it does not know it passes over.
func parseLockTable(b []byte) map[int64]int64 {
	const granted = "6" // LCK_EX: a transaction on its own number
	key := int64(0)
	owns := map[string][]int64{}  // transactions of an owner, who is a session
	wants := map[string][]int64{} // transactions an owner waits for
	scanner := bufio.NewScanner(bytes.NewReader(b))
	for scanner.Scan() {
		line := strings.TrimSpace(scanner.Text())
		switch {
		case strings.HasPrefix(line, "LOCK BLOCK"):
			key = 0
		case strings.HasPrefix(line, "Key:"):
			number, _, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "Key:")), ",")
			key, _ = strconv.ParseInt(number, 10, 64) // 0 is no transaction
		case key > 0 && strings.HasPrefix(line, "Request "):
			_, rest, _ := strings.Cut(line, "Owner:")
			owner, rest, _ := strings.Cut(rest, ",")
			state, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(rest), "State:"), "(")
			owner, state = strings.TrimSpace(owner), strings.TrimSpace(state)
			switch state {
			case granted:
				owns[owner] = append(owns[owner], key)
			case "0":
				wants[owner] = append(wants[owner], key)
			}
		}
	}
	waits := map[int64]int64{}
	for owner, keys := range wants {
		for _, own := range owns[owner] {
			waits[own] = keys[0]
		}
	}
	return waits
}
