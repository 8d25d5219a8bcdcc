package host

import (
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// Options say which host. The zero value is the one this process runs on.
type Options struct {
	Root     string     // where its files are ("/")
	StateDir string     // of the journal (/var/lib/deadpeer, %ProgramData%\deadpeer)
	Netns    *Namespace // Linux: whose sysctls; nil for those of the caller
	Registry string     // Windows: a key below HKEY_CURRENT_USER to work on instead of [WindowsKey], for tests
	Step     func(Step) // called at each step of Set and Restore, for tests
}

// Namespace is a network namespace, which has sysctls of its own.
type Namespace struct {
	Inode  uint32
	Cookie uint64                   // SO_NETNS_COOKIE, 0 when not known: inode numbers are used again
	Do     func(func() error) error // runs a function inside
	Boot   bool                     // the host's files set its values at boot
}

// Step names a point at which a kill -9 must leave nothing changed for good.
type Step string

// The steps, in the order they come.
const (
	StepJournalled  Step = "journalled"   // the originals are on disk, nothing is changed
	StepSet         Step = "set"          // one value is changed; comes once a value
	StepFileWritten Step = "file written" // complete, but not under its name yet
	StepFilePut     Step = "file put"     // under its name
	StepDone        Step = "done"         // the journal knows that all is changed
	StepPutBack     Step = "put back"     // undoing: the file is as it was, or one value; comes once each
)

// Host is one host, or one network namespace of it. Safe for concurrent use:
// changes wait for each other, those of other processes as well.
type Host struct {
	options Options
	sys     system
}

// New gives a Host. It changes nothing. On systems without any of it the error
// matches [errors.ErrUnsupported].
func New(o Options) (*Host, error) {
	if o.Root == "" {
		o.Root = "/"
	}
	if o.StateDir == "" {
		o.StateDir = defaultStateDir()
	}
	sys, err := newSystem(o)
	if err != nil {
		return nil, err
	}
	return &Host{o, sys}, nil
}

// State is what is in force, and what will be.
type State struct {
	Reader   string // the program that sets values at boot
	Other    string // another that may, where Setting.Second differs; "" for none
	Settings []Setting
	// NoFile says why Set writes no file for the next boot, "" when it does.
	NoFile string
	// BootErr says why it is not known what the next boot will set: a file may
	// be root's to read. nil when it is.
	BootErr error
	// Changed is when deadpeer first changed what it has not put back; zero
	// when nothing is changed. Interrupted: the last change was killed.
	Changed     time.Time
	Interrupted bool
	JournalErr  error // the journal is there and could not be read
	// Unrecorded is a file of deadpeer's without a journal; nil for none.
	Unrecorded *Unrecorded
}

// Setting is one parameter as it stands.
type Setting struct {
	Parameter
	Live      *int64     // in force now, nil when the system does not tell
	LiveErr   error      // why not
	Persisted *Persisted // set at boot; nil when nothing does
	Second    *Persisted // by State.Other
	Differs   bool       // the two programs would come to different values
}

// AtBoot is what will be in force after the next boot.
func (s Setting) AtBoot() int64 {
	if s.Persisted != nil {
		return s.Persisted.Value
	}
	return s.Default
}

// Now is what is in force, or, where the system does not tell, what the last
// boot is likely to have set.
func (s Setting) Now() int64 {
	if s.Live != nil {
		return *s.Live
	}
	return s.AtBoot()
}

// Part finds a setting; ok is false when this system has none.
func (s State) Part(part Part) (setting Setting, ok bool) {
	for _, setting := range s.Settings {
		if setting.Part == part {
			return setting, true
		}
	}
	return Setting{}, false
}

// Show reads what is in force and what the next boot will set. It changes
// nothing and needs no privilege but the right to read the files.
func (h *Host) Show() (State, error) {
	view, err := h.sys.boot(nil)
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return State{}, err
	}
	s := State{Reader: view.reader, Other: view.other, BootErr: err}
	if h.sys.told() { // else what is set is for the next boot anyway
		_, s.NoFile = h.sys.file()
	}
	for _, p := range h.sys.parameters() {
		setting := Setting{Parameter: p}
		if h.sys.told() {
			if v, err := h.live(p); err != nil {
				setting.LiveErr = err
			} else {
				setting.Live = &v
			}
		}
		if s.NoFile == "" && s.BootErr == nil {
			setting.look(view)
		}
		s.Settings = append(s.Settings, setting)
	}
	switch rec, err := h.load(); {
	case err == nil && rec != nil:
		s.Changed, s.Interrupted = rec.At, rec.Before != nil
	case err == nil:
		s.Unrecorded = h.unrecorded()
	case !errors.Is(err, fs.ErrPermission): // it is root's alone
		s.JournalErr = err
	}
	return s, nil
}

func (s *Setting) look(view bootView) {
	if w, ok := view.winner(s.Parameter); ok {
		s.Persisted = &w
	}
	if view.second == nil {
		return
	}
	if w, ok := view.second(s.Parameter); ok {
		s.Second = &w
	}
	second := s.Default
	if s.Second != nil {
		second = s.Second.Value
	}
	s.Differs = second != s.AtBoot()
}

// live reads the value in force.
func (h *Host) live(p Parameter) (int64, error) {
	text, present, err := h.sys.get(p.Name)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", p.Name, err)
	}
	v, ok := p.parse(text)
	if !present || !ok {
		return 0, fmt.Errorf("read %s: %q is not a value of it", p.Name, text)
	}
	return v, nil
}

func (h *Host) step(s Step) {
	if h.options.Step != nil {
		h.options.Step(s)
	}
}
