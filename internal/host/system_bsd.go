//go:build darwin || freebsd

package host

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func newSystem(o Options) (system, error) {
	if o.Netns != nil {
		return nil, fmt.Errorf("network namespaces on %s: %w", runtime.GOOS, errors.ErrUnsupported)
	}
	return &bsd{
		root: o.Root, macOS: runtime.GOOS == "darwin",
		read: unix.SysctlUint32,
		write: func(name, value string) error {
			// The program of the system: there is no call for it in Go.
			out, err := exec.Command("/usr/sbin/sysctl", name+"="+value).CombinedOutput()
			if errors.Is(err, os.ErrNotExist) {
				out, err = exec.Command("/sbin/sysctl", name+"="+value).CombinedOutput()
			}
			if err != nil {
				return fmt.Errorf("sysctl %s=%s: %w: %s", name, value, err, strings.TrimSpace(string(out)))
			}
			return nil
		},
		isRoot: func() bool { return os.Geteuid() == 0 },
		booted: bootID,
	}, nil
}

// bootID is the identifier of this boot; FreeBSD before 13 has but its time.
func bootID() (string, error) {
	for _, name := range []string{"kern.bootsessionuuid", "kern.boot_id"} {
		if id, err := unix.Sysctl(name); err == nil {
			return fmt.Sprintf("%q", id), nil
		}
	}
	tv, err := unix.SysctlTimeval("kern.boottime")
	if err != nil {
		return "", fmt.Errorf("read kern.boottime: %w", err)
	}
	return strconv.FormatInt(int64(tv.Sec), 10), nil
}
