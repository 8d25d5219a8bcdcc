package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"deadpeer/internal/attach"
	"deadpeer/internal/bpf"
	"deadpeer/internal/conn"
	"deadpeer/internal/held"
	"deadpeer/internal/journal"
	"deadpeer/keepalive"
)

// hookRules are the rules of one hook: those for the same cgroup.
type hookRules struct {
	cgroup string // its folder
	rules  []bpf.Rule
	of     []uint16 // the rule of the request that each comes from
}

// shares reports whether a connection may fit both hooks: it would have the
// policy of the nearer cgroup's, and of one cgroup's two nobody could tell.
func (h hookRules) shares(cgroup string, rules []bpf.Rule) bool {
	below := func(a, b string) bool { return a == b || strings.HasPrefix(a, strings.TrimSuffix(b, "/")+"/") }
	return (below(h.cgroup, cgroup) || below(cgroup, h.cgroup)) && slices.ContainsFunc(h.rules, func(r bpf.Rule) bool {
		return slices.ContainsFunc(rules, r.Overlaps)
	})
}

// futureRules makes hooks of the rules for future connections, none if there
// are none. A rule that its filter does not let be made is an error naming
// the part.
func (req *AttachRequest) futureRules() (hooks []hookRules, err error) {
	for n, rule := range req.Rules {
		if !rule.New {
			continue
		}
		filter := rule.Future
		if filter == nil {
			if filter, err = conn.ParseFilter(nil, conn.Resolver{}); err != nil {
				return nil, err
			}
		}
		future, err := filter.Future()
		if err != nil {
			return nil, &FutureError{err}
		}
		if len(future) == 0 {
			return nil, &FutureError{fmt.Errorf("no connection can be all of %q", filter)}
		}
		cgroup, err := findCgroup(rule.Cgroup, rule.Unit)
		if err != nil {
			return nil, err
		}
		at := slices.IndexFunc(hooks, func(h hookRules) bool { return h.cgroup == cgroup })
		if at < 0 {
			at = len(hooks)
			hooks = append(hooks, hookRules{cgroup: cgroup})
		}
		for _, f := range future {
			hooks[at].of = append(hooks[at].of, uint16(n))
			hooks[at].rules = append(hooks[at].rules, bpf.Rule{
				Local: bpf.Ports{Low: f.LocalLow, High: f.LocalHigh}, Peer: bpf.Ports{Low: f.PeerLow, High: f.PeerHigh}, From: f.Peer, Policy: rule.Policy, Enforce: rule.Enforce,
			})
		}
	}
	for n, h := range hooks {
		for _, o := range hooks[n+1:] {
			if h.shares(o.cgroup, o.rules) {
				return nil, &FutureError{fmt.Errorf("some connections of %s would get the policies of two rules, the other for %s: rules of cgroups one below the other must not be about the same connections", h.cgroup, o.cgroup)}
			}
		}
	}
	return hooks, nil
}

// findCgroup is the folder of a cgroup v2, by its path below the root of the
// hierarchy or by the systemd unit, and of all of them for neither.
func findCgroup(path, unit string) (string, error) {
	root, err := bpf.CgroupRoot()
	if err != nil {
		return "", fmt.Errorf("find the cgroup: %w", err)
	}
	if unit == "" {
		dir := filepath.Join(root, filepath.Clean("/"+path))
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			return "", fmt.Errorf("no cgroup %s below %s: %w", conn.Printable(path), root, fs.ErrNotExist)
		}
		return dir, nil
	}
	found := ""
	err = filepath.WalkDir(root, func(dir string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil // a cgroup may vanish meanwhile
		case d.IsDir() && d.Name() == unit:
			found = dir
			return filepath.SkipAll
		}
		return nil
	})
	if err == nil && found == "" {
		err = fmt.Errorf("no cgroup below %s is that of unit %s: %w", root, conn.Printable(unit), fs.ErrNotExist)
	}
	return found, err
}

// withoutNew is the way where hooks cannot be had.
const withoutNew = "without --new the connections there are now get the policy, by other means"

// hook makes the file of an attachment, and its hooks.
func (m *making) hook(req AttachRequest, hooks []hookRules) error {
	if m.e.options.NoBPF {
		return fmt.Errorf("give future connections a policy: it takes BPF, which is switched off: %w; %s", errors.ErrUnsupported, withoutNew)
	}
	if err := m.e.free(hooks); err != nil {
		return err
	}
	if err := m.create(req); err != nil {
		return err
	}
	for n, h := range hooks {
		hook, err := bpf.AttachHook(bpf.HookOptions{
			Dir: m.e.options.HookDir, ID: hookID(m.file.ID, n), Home: m.e.home(), Cgroup: h.cgroup, Rules: h.rules, Follow: true,
		})
		if err != nil {
			return fmt.Errorf("give future connections a policy: %w; %s, and deadpeer doctor says what is missing", noBPFFS(err), withoutNew)
		}
		m.hooked = true
		if err := hook.Close(); err != nil {
			return err
		}
	}
	return nil
}

// free refuses hooks that share connections with those of another attachment.
// A program that deadpeer run has started has that policy: its cgroup is nearer.
func (e *Engine) free(hooks []hookRules) error {
	there, err := bpf.Hooks(e.options.HookDir)
	defer closeHooks(there)
	for _, o := range there {
		if strings.HasPrefix(o.Label.ID, runHook) || o.Damaged != nil {
			continue
		}
		if slices.ContainsFunc(hooks, func(h hookRules) bool { return h.shares(o.Label.Cgroup, o.Label.Rules) }) {
			id, _, _ := strings.Cut(o.Label.ID, "-")
			if o.Label.Home != e.home() {
				return errors.Join(err, fmt.Errorf("attachment %s of another deadpeer, which has its runtime folder at %s, has a policy for some of the same future connections: detach it there, or leave out --new", id, conn.Printable(o.Label.Home)))
			}
			return errors.Join(err, fmt.Errorf("attachment %s has a policy for some of the same future connections: deadpeer detach %[1]s first, or leave out --new", id))
		}
	}
	return err
}

// hooksOf are the hooks whose IDs begin so: those of an attachment
// (hooksPrefix), or of programs (runHook). Close them.
func (e *Engine) hooksOf(prefix string) (mine []*bpf.Hook, err error) {
	all, err := bpf.Hooks(e.options.HookDir)
	for _, h := range all {
		if strings.HasPrefix(h.Label.ID, prefix) {
			mine = append(mine, h)
		} else {
			err = errors.Join(err, h.Close())
		}
	}
	return mine, err
}

// endHooks takes down the hooks of an attachment, and notes in its file what
// they changed. They are stopped first: what they gave between the noting and
// their end nobody would know of.
func (e *Engine) endHooks(ctx context.Context, a attachment, older []attachment) error {
	hooks, err := e.hooksOf(hooksPrefix(a.ID))
	for _, h := range hooks {
		err = errors.Join(err, h.Stop(), h.Close())
	}
	if err != nil {
		return err
	}
	if err := e.adopt(ctx, a, older); err != nil {
		return err
	}
	return e.unhook(hooksPrefix(a.ID))
}

// unhook removes them.
func (e *Engine) unhook(prefix string) error {
	hooks, err := e.hooksOf(prefix)
	for _, h := range hooks {
		err = errors.Join(err, h.Remove())
	}
	return err
}

// hold keeps programs from weakening the policy on the connections that there
// were before the hooks.
func (r *run) hold(id string, hooks []hookRules, items []attach.Item, rows []uint32) error {
	hookOf := map[uint16]int{} // by rule, of those that are enforced
	for at, h := range hooks {
		for n, r := range h.rules {
			if r.Enforce {
				hookOf[h.of[n]] = at
			}
		}
	}
	if len(hookOf) == 0 {
		return nil
	}
	made, err := r.e.hooksOf(hooksPrefix(id))
	defer closeHooks(made)
	if err != nil {
		return err
	}
	taker := held.New()
	defer taker.Close()
	for n, it := range items {
		o := r.snap.outcomes[rows[n]]
		at, enforced := hookOf[it.Rule]
		if !enforced || !o.Done {
			continue
		}
		name := hookID(id, at)
		k := slices.IndexFunc(made, func(h *bpf.Hook) bool { return h.Label.ID == name })
		if k < 0 {
			return fmt.Errorf("hook %s is gone", name)
		}
		s, refusal := taker.Take(it.Target.ID.Cookie, it.Target.Owners)
		if refusal != held.None {
			if !r.hasEnded(it.Target.ID) {
				o.Error = "its program may weaken the policy: " + refusal.Error()
			}
		} else {
			if err := made[k].Hold(s.FD, it.Policy); err != nil {
				o.Error = "its program may weaken the policy: " + err.Error()
			}
			taker.Give(s)
		}
		r.snap.outcomes[rows[n]] = o
	}
	return nil
}

// hooksPrefix begins the IDs of the hooks of an attachment.
func hooksPrefix(attachment string) string { return attachment + "-" }

func hookID(attachment string, n int) string { return hooksPrefix(attachment) + strconv.Itoa(n) }

func (a attachment) hooked() bool {
	return slices.ContainsFunc(a.about.Rules, func(r attach.Rule) bool { return r.New })
}

// adopt notes the connections that got their policy from the hooks of an
// attachment like those that were changed later in life, and what programs have
// set themselves on either. Of the older attachments the newest come first.
func (e *Engine) adopt(ctx context.Context, a attachment, older []attachment) error {
	hooks, err := e.hooksOf(hooksPrefix(a.ID))
	defer closeHooks(hooks)
	if err != nil {
		return err
	}
	var records []journal.Attached
	var ids []conn.ID
	var whole []*bpf.Hook
	for _, h := range hooks {
		switch {
		case errors.Is(h.Damaged, fs.ErrNotExist):
			continue // its maker was killed before it did anything, or its remover after all was noted
		case h.Damaged != nil: // what its connections had would be lost with it
			return fmt.Errorf("read what connections had before hook %s: %w", h.Label.ID, h.Damaged)
		}
		whole = append(whole, h)
		err := h.Changed(ctx, func(c bpf.Changed) error {
			if _, known := a.Socket(c.ID); !known {
				records, ids = append(records, attach.Given(c.ID, a.ruleOf(h.Label.Rules[c.Rule]), c.Before.Settings, c.Given, filesOf(older))), append(ids, c.ID)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	// The hook of a cgroup notes calls as they are made, that of one above it
	// what was left of them.
	slices.SortFunc(whole, func(g, h *bpf.Hook) int { return cmp.Compare(len(g.Label.Cgroup), len(h.Label.Cgroup)) })
	own := bpf.OwnCalls{}
	for _, h := range whole {
		calls, err := h.OwnCalls(ctx)
		if err != nil {
			return err
		}
		maps.Copy(own, calls)
	}
	for s := range a.All() {
		now := attach.Own(s, func(was keepalive.Settings) keepalive.Settings { return own.Over(s.ID.Cookie, was) })
		if now.Was == s.Was {
			continue
		}
		if records = append(records, now); s.Applied {
			ids = append(ids, s.ID)
		}
	}
	if err := a.Add(records); err != nil {
		return err
	}
	return a.Applied(ids)
}

// givenBy are the connections that got their policy from the hooks of an
// attachment, with its rule, for who may not note them.
func (e *Engine) givenBy(ctx context.Context, a attachment) (map[conn.ID]uint16, error) {
	given := map[conn.ID]uint16{}
	err := e.eachGiven(ctx, hooksPrefix(a.ID), func(h *bpf.Hook, c bpf.Changed) { given[c.ID] = a.ruleOf(h.Label.Rules[c.Rule]) })
	return given, err
}

// eachGiven visits the connections that have their policy from the hooks whose
// IDs begin so (hooksOf).
func (e *Engine) eachGiven(ctx context.Context, prefix string, visit func(*bpf.Hook, bpf.Changed)) error {
	hooks, err := e.hooksOf(prefix)
	defer closeHooks(hooks)
	for _, h := range hooks {
		if h.Damaged == nil {
			err = errors.Join(err, h.Changed(ctx, func(c bpf.Changed) error {
				visit(h, c)
				return nil
			}))
		}
	}
	return err
}

// ruleOf is the rule of an attachment that a rule of one of its hooks is of.
func (a attachment) ruleOf(rule bpf.Rule) uint16 {
	return uint16(max(0, slices.IndexFunc(a.about.Rules, func(r attach.Rule) bool {
		return r.New && r.Enforce == rule.Enforce && r.Policy == rule.Given()
	})))
}

func closeHooks(hooks []*bpf.Hook) {
	for _, h := range hooks {
		_ = h.Close() // the hook goes on
	}
}

// countHooks sums what the hooks of an attachment have done.
func (e *Engine) countHooks(a *Attachment) error {
	hooks, err := e.hooksOf(hooksPrefix(a.ID))
	defer closeHooks(hooks)
	for _, h := range hooks {
		err = errors.Join(err, a.count(h))
		a.Active = a.Active || h.Active()
	}
	return err
}

// count adds what a hook has done.
func (a *Attachment) count(h *bpf.Hook) error {
	c, err := h.Counters()
	a.Given += c.Applied
	a.NotGiven += c.Failed + c.Refused
	a.Limited += c.Limited.Sum()
	return err
}

// hookedSockets adds the connections that have their policy from any hook.
func (e *Engine) hookedSockets(ctx context.Context, ids map[conn.ID]bool) error {
	return e.eachGiven(ctx, "", func(_ *bpf.Hook, c bpf.Changed) { ids[c.ID] = true })
}
