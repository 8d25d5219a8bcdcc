package bpf

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"deadpeer/internal/jiffies"
	"deadpeer/internal/netns"
)

// Sockets are the loaded programs that list connections and descriptors. They
// are safe for concurrent use until Close.
type Sockets struct {
	hz      int64
	lists   [listEnd]*link.Iter
	alone   bool
	pinning error // why they are not pinned
}

// The programs, by their place in Sockets.lists.
const (
	connections = iota
	descriptors
	listEnd
)

var listNames = [listEnd]string{socketsProgConnections, socketsProgDescriptors}

// OpenSockets takes the programs from where an earlier run pinned them, or
// loads them (some 30 ms) and pins them. Where they cannot be pinned they are
// loaded for this run alone. Pins of another build are never used, and removed.
func OpenSockets(o SocketsOptions) (*Sockets, error) {
	s := &Sockets{hz: int64(jiffies.HZ()), alone: o.Alone}
	dir, pinning := pinDir(o)
	if pinning == nil && s.find(dir) {
		return s, nil
	}
	if err := s.attach(); err != nil {
		return nil, fmt.Errorf("load sockets programs: %w", err)
	}
	if s.pinning = pinning; pinning == nil {
		s.pinning = s.keep(dir)
	}
	return s, nil
}

// pinDir is where this build may pin. The folder may not exist yet.
func pinDir(o SocketsOptions) (dir string, err error) {
	if o.NoPin {
		return "", errors.New("not wanted")
	}
	if dir = o.Dir; dir == "" {
		if dir, err = PinDir(); err != nil {
			return "", err
		}
	}
	if err := trusted(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return dir, nil
}

// socketsPrefix begins the name of a pin; the build and the program follow.
const socketsPrefix = "sockets-"

// pins are where this build pins its programs.
func pins(dir string) (paths [listEnd]string) {
	for i, name := range listNames {
		paths[i] = filepath.Join(dir, socketsPrefix+build(_SocketsBytes)+"-"+name)
	}
	return paths
}

// build names an object: what another build pinned may write other records.
func build(object []byte) string {
	sum := sha256.Sum256(object)
	return hex.EncodeToString(sum[:8])
}

// find takes the programs from where they are pinned, if all of them are.
func (s *Sockets) find(dir string) bool {
	for i, path := range pins(dir) {
		l, err := link.LoadPinnedLink(path, nil)
		if err == nil {
			s.lists[i], _ = l.(*link.Iter)
		}
		if s.lists[i] == nil {
			if l != nil {
				_ = l.Close()
			}
			_ = s.Close() // nothing was done with it
			return false
		}
	}
	return true
}

func (s *Sockets) attach() error {
	spec, err := loadSockets()
	if err != nil {
		return err
	}
	var loaded socketsPrograms
	if err := load(spec, &loaded); err != nil {
		return err
	}
	for i, p := range [listEnd]*ebpf.Program{loaded.Connections, loaded.Descriptors} {
		it, attachErr := link.AttachIter(link.IterOptions{Program: p})
		s.lists[i], err = it, errors.Join(err, explain(attachErr))
	}
	if err = errors.Join(err, loaded.Close()); err != nil {
		return errors.Join(err, s.Close())
	}
	return nil
}

// keep pins the programs, and removes what other builds pinned.
func (s *Sockets) keep(dir string) error {
	if err := makeDir(dir); err != nil {
		return err
	}
	paths := pins(dir)
	for i, path := range paths {
		if err := s.lists[i].Pin(path); err != nil && !errors.Is(err, fs.ErrExist) { // another process may have been first
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if path := filepath.Join(dir, e.Name()); strings.HasPrefix(e.Name(), socketsPrefix) && !slices.Contains(paths[:], path) {
			_ = os.Remove(path) // costs memory only
		}
	}
	return nil
}

// Pinned reports whether the next OpenSockets costs nothing; if not, why.
func (s *Sockets) Pinned() (bool, error) { return s.pinning == nil, s.pinning }

// Close lets go of the programs. Pinned ones stay in the kernel.
func (s *Sockets) Close() error {
	var errs []error
	for i, l := range s.lists {
		if l != nil {
			errs = append(errs, l.Close())
			s.lists[i] = nil
		}
	}
	return errors.Join(errs...)
}

// Connections visits every TCP socket of a network namespace that has a peer
// (conn.Connections), IPv4 and IPv6 alike, with a Record that is used again for
// the next one. An error of visit ends it and is returned. Sockets that come
// and go meanwhile may be missed, or visited twice, one shortly after the
// other. Unless hold is nil nothing is visited before it is closed; the kernel
// goes on listing meanwhile, which takes some 180 bytes of memory a connection.
func (s *Sockets) Connections(ctx context.Context, ns *netns.NS, hold <-chan struct{}, visit func(*Record) error) error {
	var in io.ReadCloser
	err := ns.Do(func() (err error) { // it lists where it was opened
		in, err = walkOf(s.lists[connections], recordLen, s.alone)
		return err
	})
	if err == nil {
		d := recordReader{hz: s.hz}
		d.r.Sock.NetNS = ns.Inode()
		err = readAhead(ctx, in, hold, func(b []byte) ([]byte, error) { return d.read(b, visit) })
		err = errors.Join(err, in.Close())
	}
	if err != nil {
		return fmt.Errorf("list connections: %w", err)
	}
	return nil
}

// Descriptors visits every descriptor that is a socket of any kind, of the
// processes in the caller's pid namespace and of all network namespaces. A
// thread that does not share its process's descriptors (unshare(2)) is not
// visited. Descriptors that come and go meanwhile may be missed.
func (s *Sockets) Descriptors(ctx context.Context, visit func(Descriptor)) error {
	in, err := walkOf(s.lists[descriptors], descriptorLen, s.alone)
	if err == nil {
		err = readIter(ctx, in, func(b []byte) ([]byte, error) { return readDescriptors(b, visit), nil })
		err = errors.Join(err, in.Close())
	}
	if err != nil {
		return fmt.Errorf("list descriptors: %w", err)
	}
	return nil
}
