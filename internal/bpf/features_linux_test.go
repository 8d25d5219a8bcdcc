package bpf

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"deadpeer/internal/linux"
)

// Root has everything but what has to be mounted, and what is newer than the
// kernel.
func TestFeatures(t *testing.T) {
	t.Parallel()
	needBPF(t)
	for _, f := range Features() {
		mounted := strings.Contains(f.Mend, "mount -t ")
		newer := linux.Before(6, 5) && strings.Contains(f.Mend, "6.5 or later")
		if !f.OK && !mounted && !newer || f.Detail == "" || f.OK != (f.Mend == "") {
			t.Errorf("%+v", f)
		}
	}
}

// Who may not is told which capabilities it takes.
func TestFeaturesUnprivileged(t *testing.T) {
	if os.Getenv("DEADPEER_BPF_TEST") == "features" {
		for _, f := range Features() {
			_, _ = os.Stdout.WriteString(f.Name + ": " + f.Detail + ": " + f.Mend + "\n")
		}
		os.Exit(0)
	}
	t.Parallel()
	needBPF(t) // else the others have told
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestFeaturesUnprivileged$")
	cmd.Env = append(os.Environ(), "DEADPEER_BPF_TEST=features", "DEADPEER_TESTNET_REEXEC=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		skip(t, err)
	}
	if n := strings.Count(string(out), "not permitted: run as root, or grant CAP_BPF"); n != 5 {
		t.Errorf("%d say so:\n%s", n, out)
	}
}
