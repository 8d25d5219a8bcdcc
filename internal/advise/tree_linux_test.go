package advise

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Names come from files that others write: nothing outside the root is read,
// and nothing is waited for.
func TestTreeIsClosed(t *testing.T) {
	t.Parallel()
	outside := write(t, folder(t)+"/secret", "outside")
	root := folder(t)
	write(t, root+"/etc/real", "inside")
	for link, target := range map[string]string{
		"absolute": "/etc/real", "escape": outside, "up": "../../../../.." + outside, "self": "/proc/self/environ",
	} {
		if err := os.Symlink(target, root+"/"+link); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(root+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, root+"/huge", strings.Repeat("x", maxFile+1))
	tree := newTree(root)
	if text, err := readFile(tree, "/absolute"); err != nil || text != "inside" {
		t.Errorf("an absolute link: %q, %v", text, err)
	}
	for _, name := range []string{"/escape", "/up", "/self", "/../.." + outside, "/none"} {
		if text, err := readFile(tree, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	for name, want := range map[string]string{"/fifo": "not a regular file", "/etc": "not a regular file", "/huge": "longer than"} {
		if _, err := readFile(tree, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if list, err := fs.Glob(tree, "e*/r*"); err != nil || len(list) != 1 || list[0] != "etc/real" {
		t.Errorf("%q, %v", list, err)
	}
}

// To look at a device could start something: it is not so much as opened.
func TestSpecialFilesAreNotOpened(t *testing.T) {
	t.Parallel()
	root := folder(t)
	if err := syscall.Mkfifo(root+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, root+"/fifo", unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	if _, err := readFile(newTree(root), "/fifo"); !errors.Is(err, errNotRegular) {
		t.Errorf("%v", err)
	}
	if n, err := unix.Read(watch, make([]byte, 4096)); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("it was opened: %d bytes of events, %v", n, err)
	}
}

// Files of procfs claim to be regular, and reading some of them waits.
func TestProcfsIsNotRead(t *testing.T) {
	t.Parallel()
	if text, err := readFile(newTree("/"), "/proc/version"); err != nil || text != "" {
		t.Errorf("%q, %v", text, err)
	}
}
