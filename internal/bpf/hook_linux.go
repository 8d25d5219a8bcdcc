package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"deadpeer/internal/conn"
	"deadpeer/internal/jiffies"
	"deadpeer/keepalive"
)

// What a hook pins in its folder, in the order in which it does.
const (
	pinLabel      = hookMapLabel
	pinCounters   = hookMapCounters
	pinPlaces     = hookMapPlaces
	pinStored     = hookMapStored
	pinListPlaced = hookProgListPlaced
	pinListStored = hookProgListStored
	pinEnforce    = hookProgEnforce
	pinGreet      = hookProgGreet
)

// Hook is a policy for the new connections of a cgroup. It outlives the
// process: until Stop or Remove, or the cgroup is removed, or the host
// restarts. Not safe for concurrent use.
type Hook struct {
	Label Label
	// Damaged says why a hook that Hooks found is not whole: the process that
	// made it or removed it was killed. Remove it.
	Damaged error

	hz      int64
	dir     string
	maps    hookMaps
	greet   link.Link // nil when stopped
	enforce link.Link // nil when stopped, or not wanted
	note    link.Link // same
}

// AttachHook makes a hook. From when it returns, every new connection of the
// cgroup that a rule fits has its policy before its program gets it. A socket
// belongs to the cgroup that its process was in when it made the socket or, of
// an accepted connection, the listener. Close the Hook.
func AttachHook(o HookOptions) (_ *Hook, err error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("attach hook: %w", err)
	}
	h := &Hook{hz: int64(jiffies.HZ()), Label: Label{ID: o.ID, Home: o.Home, Cgroup: o.Cgroup, Rules: o.Rules, Made: time.Now()}}
	parent, err := hookDir(o.Dir)
	if err == nil {
		err = isCgroup2(o.Cgroup)
	}
	if err == nil {
		err = makeDir(parent)
	}
	if err != nil {
		return nil, fmt.Errorf("attach hook: %w", err)
	}
	dir := filepath.Join(parent, o.ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("attach hook: %w", err)
	}
	h.dir = dir
	if err := h.attach(o.Follow); err != nil {
		return nil, fmt.Errorf("attach hook: %w", errors.Join(err, h.Remove()))
	}
	return h, nil
}

func hookDir(dir string) (string, error) {
	if dir != "" {
		return dir, nil
	}
	dir, err := PinDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "hooks"), nil
}

func isCgroup2(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &fs.PathError{Op: "use cgroup", Path: dir, Err: err}
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return &fs.PathError{Op: "use cgroup", Path: dir, Err: errors.New("not a folder of a cgroup v2 hierarchy")}
	}
	return nil
}

// attach loads, pins and then links the programs. A process that is killed on
// the way leaves what Hooks lists.
func (h *Hook) attach(follow bool) error {
	spec, err := loadHook()
	if err != nil {
		return err
	}
	if err := errors.Join(
		spec.Variables[hookVarRuleCount].Set(uint32(len(h.Label.Rules))),
		spec.Variables[hookVarRules].Set(rawRules(h.Label.Rules)),
	); err != nil {
		return err
	}
	var o struct {
		hookPrograms
		hookMaps
	}
	if err := load(spec, &o); err != nil {
		return err
	}
	defer func() { _ = o.hookPrograms.Close() }() // links keep them
	h.maps = o.hookMaps
	label, err := storedLabel{keptVersion, h.Label}.encode()
	if err != nil {
		return err
	}
	if err := h.maps.Label.Put(uint32(0), label); err != nil {
		return err
	}
	for _, p := range []struct {
		name string
		what interface{ Pin(string) error }
	}{{pinLabel, o.Label}, {pinCounters, o.Counters}, {pinPlaces, o.Places}, {pinStored, o.Stored}} {
		if err := p.what.Pin(filepath.Join(h.dir, p.name)); err != nil {
			return err
		}
	}
	err = errors.Join(h.pinIter(pinListPlaced, o.ListPlaced, o.Places), h.pinIter(pinListStored, o.ListStored, o.Stored))
	if err != nil {
		return err
	}
	if follow {
		if err := h.follow(); err != nil {
			return err
		}
	}
	if h.Label.Enforces() {
		if h.enforce, err = h.link(pinEnforce, ebpf.AttachCGroupSetsockopt, o.Enforce); err != nil {
			return err
		}
	}
	h.greet, err = h.link(pinGreet, ebpf.AttachCGroupSockOps, o.Greet)
	return err
}

// pinIter pins an iterator over a map.
func (h *Hook) pinIter(name string, p *ebpf.Program, m *ebpf.Map) error {
	l, err := link.AttachIter(link.IterOptions{Program: p, Map: m})
	if err != nil {
		return explain(err)
	}
	return errors.Join(l.Pin(filepath.Join(h.dir, name)), l.Close())
}

func (h *Hook) link(name string, at ebpf.AttachType, p *ebpf.Program) (link.Link, error) {
	l, err := link.AttachCgroup(link.CgroupOptions{Path: h.Label.Cgroup, Attach: at, Program: p})
	switch {
	case errors.Is(err, unix.EPERM): // not for want of privilege, or the program would not have been loaded
		return nil, &fs.PathError{Op: "use cgroup", Path: h.Label.Cgroup, Err: errors.New("another BPF program, there or above, admits none beside it (it was attached without BPF_F_ALLOW_MULTI)")}
	case err != nil:
		return nil, explain(err)
	}
	if err := l.Pin(filepath.Join(h.dir, name)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// needRoot: what is pinned belongs to root, whatever capabilities others have.
func needRoot(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w (needs root)", err)
	}
	return err
}

// Hooks lists the hooks in a folder on a bpffs, "" being the folder that
// AttachHook takes by itself, whole or damaged. Close them.
func Hooks(dir string) (list []*Hook, err error) {
	if dir, err = hookDir(dir); err != nil {
		if errors.Is(err, errNoBPFFS) || errors.Is(err, fs.ErrNotExist) {
			return nil, nil // then there are none
		}
		return nil, fmt.Errorf("list hooks: %w", needRoot(err))
	}
	if err := trusted(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("list hooks: %w", needRoot(err))
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list hooks: %w", needRoot(err))
	}
	for _, e := range entries {
		if !e.IsDir() || !validID(e.Name()) {
			continue
		}
		h := &Hook{hz: int64(jiffies.HZ()), Label: Label{ID: e.Name()}, dir: filepath.Join(dir, e.Name())}
		h.Damaged = h.open()
		list = append(list, h)
	}
	return list, nil
}

// open takes up what is pinned.
func (h *Hook) open() error {
	if err := trusted(h.dir); err != nil {
		return err
	}
	var errs []error
	for _, m := range []struct {
		name  string
		which **ebpf.Map
	}{{pinLabel, &h.maps.Label}, {pinCounters, &h.maps.Counters}, {pinPlaces, &h.maps.Places}, {pinStored, &h.maps.Stored}} {
		got, err := ebpf.LoadPinnedMap(filepath.Join(h.dir, m.name), nil)
		if errs = append(errs, explain(err)); err == nil {
			*m.which = got
		}
	}
	for _, l := range []struct {
		name  string
		which *link.Link
	}{{pinGreet, &h.greet}, {pinEnforce, &h.enforce}, {pinNote, &h.note}} {
		got, err := link.LoadPinnedLink(filepath.Join(h.dir, l.name), nil)
		switch {
		case err == nil:
			*l.which = got
		case !errors.Is(err, fs.ErrNotExist): // else it was stopped
			errs = append(errs, explain(err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	var b []byte
	if err := h.maps.Label.Lookup(uint32(0), &b); err != nil {
		return fmt.Errorf("read label: %w", err)
	}
	stored, err := decodeLabel(b)
	switch {
	case err != nil:
		return err
	case stored.Version != keptVersion:
		return fmt.Errorf("made by a deadpeer that keeps version %d of what connections had, not %d", stored.Version, keptVersion)
	case stored.Label.ID != h.Label.ID:
		return fmt.Errorf("its label is that of hook %q", conn.Printable(stored.Label.ID))
	}
	h.Label = stored.Label
	return nil
}

// Active reports whether new connections get the policy: the hook was not
// stopped, and its cgroup is still there.
func (h *Hook) Active() bool {
	if h.greet == nil {
		return false
	}
	info, err := h.greet.Info()
	return err == nil && info.Cgroup() != nil && info.Cgroup().CgroupId != 0
}

// Counters tells what the hook has done since it was made.
func (h *Hook) Counters() (Counters, error) {
	var c Counters
	if h.Damaged != nil {
		return c, fmt.Errorf("read counters of hook %s: %w", h.Label.ID, h.Damaged)
	}
	for i, to := range []*uint64{
		&c.Applied, &c.Failed, &c.Refused,
		&c.Limited.KeepAlive, &c.Limited.Idle, &c.Limited.Interval, &c.Limited.Probes, &c.Limited.UserTimeout,
	} {
		var each []uint64 // of every processor
		if err := h.maps.Counters.Lookup(uint32(i), &each); err != nil {
			return c, fmt.Errorf("read counters of hook %s: %w", h.Label.ID, err)
		}
		for _, n := range each {
			*to += n
		}
	}
	return c, nil
}

// Changed visits the connections that have their policy from the hook and still
// are, of every network namespace: what [Changer.Apply] can restore. One may be
// visited that has just ended, or twice, and one that its program has
// disconnected, as long as it holds the socket, which it may connect again.
func (h *Hook) Changed(ctx context.Context, visit func(Changed) error) error {
	if h.Damaged != nil {
		return fmt.Errorf("list connections of hook %s: %w", h.Label.ID, h.Damaged)
	}
	own, err := h.OwnCalls(ctx)
	if err != nil {
		return err
	}
	each := func(k *hookKept) error {
		if k.Cookie == 0 || int(k.Rule) >= len(h.Label.Rules) {
			return nil
		}
		before := rawSettings(k.Before).settings(h.hz)
		own[k.Cookie].over(&before)
		return visit(Changed{ID: conn.ID{NetNS: k.Netns, Cookie: k.Cookie}, Rule: int(k.Rule), Before: before, Given: h.Label.Rules[k.Rule].Given()})
	}
	err = listed(ctx, h, pinListPlaced, func(p *hookPlace) error {
		if p.Checksum != p.Kept.checksum() {
			// It was being written; by now it is, or it is free.
			at := uint32(p.Kept.Cookie % uint64(h.maps.Places.MaxEntries()))
			if err := h.maps.Places.LookupWithFlags(at, p, ebpf.LookupLock); err != nil {
				return err
			}
		}
		return each(&p.Kept)
	})
	if err == nil {
		err = listed(ctx, h, pinListStored, each)
	}
	if err != nil {
		return fmt.Errorf("list connections of hook %s: %w", h.Label.ID, err)
	}
	return nil
}

// checksum is the one of keep in c/hook.c.
func (k *hookKept) checksum() (sum uint32) {
	for _, word := range unsafe.Slice((*uint32)(unsafe.Pointer(k)), unsafe.Sizeof(*k)/4) {
		sum = bits.RotateLeft32(sum, 1) ^ word
	}
	return sum
}

// listed visits what a pinned iterator writes.
func listed[T any](ctx context.Context, h *Hook, pin string, visit func(*T) error) error {
	in, err := os.Open(filepath.Join(h.dir, pin))
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	var one T
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&one)), unsafe.Sizeof(one))
	return readIter(ctx, in, func(b []byte) ([]byte, error) {
		for ; len(b) >= len(raw); b = b[len(raw):] {
			copy(raw, b)
			if err := visit(&one); err != nil {
				return nil, err
			}
		}
		return b, nil
	})
}

// Hold keeps the program of a socket that was there before the hook, and that
// fd is a duplicate of, from weakening the policy, which must be that of one of
// the rules that enforce, if the socket belongs to the hook's cgroup. It changes
// no option, and Changed does not visit the socket.
func (h *Hook) Hold(fd int, p keepalive.Policy) error {
	rule := slices.IndexFunc(h.Label.Rules, func(r Rule) bool { return r.Enforce && r.Policy == p })
	err := h.Damaged
	switch {
	case err != nil:
	case rule < 0:
		err = errors.New("none of its rules enforces that policy")
	default:
		err = h.maps.Stored.Update(uint32(fd), hookKept{Rule: uint32(rule)}, ebpf.UpdateNoExist)
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return fmt.Errorf("hold a program to the policy of hook %s: %w", h.Label.ID, err)
	}
	return nil
}

// Stop ends the hook's work: new connections get no policy, programs are held
// to none. What connections had stays known to Changed until Remove.
func (h *Hook) Stop() error {
	var errs []error
	for _, l := range []struct {
		name  string
		which *link.Link
	}{{pinGreet, &h.greet}, {pinEnforce, &h.enforce}, {pinNote, &h.note}} {
		if *l.which != nil {
			// Others may hold the link, and keep it without this.
			if err := (*l.which).Detach(); err != nil && !errors.Is(err, link.ErrNotSupported) {
				errs = append(errs, err)
			}
			errs = append(errs, (*l.which).Close())
			*l.which = nil
		}
		if err := os.Remove(filepath.Join(h.dir, l.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop hook %s: %w", h.Label.ID, err)
	}
	return nil
}

// Remove stops the hook and removes all of it, whole or damaged, and closes
// it. Another process may do the same meanwhile. It restores no connection.
func (h *Hook) Remove() error {
	errs := []error{h.Stop()}
	there := func(err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	entries, err := os.ReadDir(h.dir)
	errs = append(errs, there(err))
	for _, e := range entries {
		errs = append(errs, there(os.Remove(filepath.Join(h.dir, e.Name()))))
	}
	errs = append(errs, there(os.Remove(h.dir)), h.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove hook %s: %w", h.Label.ID, err)
	}
	return nil
}

// Close lets go of the hook, which goes on.
func (h *Hook) Close() error {
	var list []io.Closer
	for _, m := range []*ebpf.Map{h.maps.Label, h.maps.Counters, h.maps.Places, h.maps.Stored} {
		if m != nil {
			list = append(list, m)
		}
	}
	for _, l := range []link.Link{h.greet, h.enforce, h.note} {
		if l != nil {
			list = append(list, l)
		}
	}
	h.maps, h.greet, h.enforce, h.note = hookMaps{}, nil, nil, nil
	return closeAll(list...)
}

// rawRules are what the program takes.
func rawRules(rules []Rule) [MaxRules]hookRule {
	var raw [MaxRules]hookRule
	for i, r := range rules {
		to := &raw[i]
		*to = hookRule{
			LocalLow: r.Local.Low, LocalHigh: r.Local.High, PeerLow: r.Peer.Low, PeerHigh: r.Peer.High,
			Idle: uint32(whole(r.Policy.Idle, time.Second)), Interval: uint32(whole(r.Policy.Interval, time.Second)),
			Probes: uint8(r.Policy.Probes), UserTimeoutMs: -1,
		}
		if r.Enforce {
			to.Enforce = 1
		}
		if r.Local == (Ports{}) {
			to.LocalHigh = 1<<16 - 1
		}
		if r.Peer == (Ports{}) {
			to.PeerHigh = 1<<16 - 1
		}
		if r.Policy.UserTimeout >= 0 {
			to.UserTimeoutMs = int32(whole(r.Policy.UserTimeout, time.Millisecond))
		}
		if !r.From.IsValid() {
			continue
		}
		var mask [16]byte
		bits := r.From.Bits()
		if to.Family = 6; r.From.Addr().Is4() {
			to.Family, bits = 4, bits+96
		}
		for b := range bits {
			mask[b/8] |= 0x80 >> (b % 8)
		}
		addr := r.From.Addr().As16()
		for w := range to.Addr {
			to.Addr[w], to.Mask[w] = binary.NativeEndian.Uint32(addr[4*w:]), binary.NativeEndian.Uint32(mask[4*w:])
		}
	}
	return raw
}
