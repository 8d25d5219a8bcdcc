package advise

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"
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
