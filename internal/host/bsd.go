package host

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
)

// bsd is the sysctls of FreeBSD or macOS. What touches the system are
// functions, so that the rest is the same wherever it runs.
type bsd struct {
	root   string
	macOS  bool
	read   func(name string) (uint32, error)
	write  func(name, value string) error // by sysctl(8)
	isRoot func() bool
	booted func() (string, error)
}

func (b *bsd) parameters() []Parameter {
	if b.macOS {
		return bsdParameters(0)
	}
	return bsdParameters(1)
}

func (*bsd) told() bool { return true }

func (b *bsd) file() (path, why string) {
	if b.macOS {
		return "", "newer macOS reads no /etc/sysctl.conf at boot: have launchd run deadpeer tune set --live-only"
	}
	return sysctlConf, ""
}

func (b *bsd) get(name string) (value string, present bool, err error) {
	v, err := b.read(name)
	if err != nil {
		return "", false, err
	}
	return strconv.FormatUint(uint64(v), 10), true, nil
}

func (b *bsd) set(name, value string) error { return b.write(name, value) }

func (*bsd) unset(name string) error {
	return fmt.Errorf("%s: %w: a sysctl always has a value", name, errors.ErrUnsupported)
}

func (b *bsd) writable(string) error {
	if !b.isRoot() {
		return fmt.Errorf("%w (needs root)", fs.ErrPermission)
	}
	return nil
}

func (b *bsd) bootID() (string, error) { return b.booted() }

// boot reads /etc/sysctl.conf and then, on FreeBSD, /etc/sysctl.conf.local
// (sysctl.conf(5)), which /etc/rc.d/sysctl goes through line by line, so that
// the last one counts.
func (b *bsd) boot(file *content) (bootView, error) {
	view := bootView{reader: "/etc/rc.d/sysctl"}
	if b.macOS {
		view.reader = "older macOS"
	}
	names := []string{sysctlConf}
	if !b.macOS {
		names = append(names, sysctlConf+".local")
	}
	var files []confFile
	for _, name := range names {
		f := confFile{name: strings.TrimPrefix(name, "/etc/")}
		if name == sysctlConf && file != nil {
			f.content, f.masked = file.bytes, file.absent
		} else {
			var err error
			f.content, err = readLimited(filepath.Join(b.root, name))
			if f.masked = errors.Is(err, fs.ErrNotExist); err != nil && !f.masked {
				return view, err
			}
		}
		files = append(files, f)
	}
	view.winner = func(p Parameter) (Persisted, bool) { return procps.winner(p, files) }
	return view, nil
}
