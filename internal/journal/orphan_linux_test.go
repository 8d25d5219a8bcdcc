package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func mustOrphans(t *testing.T, dir string) []Orphan {
	t.Helper()
	list, err := Orphans(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for i := range list {
			_ = list[i].Close()
		}
	})
	return list
}

func TestKill9(t *testing.T) {
	dir := runtimeDir(t)
	for round := range 8 {
		cmd, lines := start(t, "append", dir)
		for range 20 + 37*round {
			if !lines.Scan() || strings.HasPrefix(lines.Text(), "error") {
				t.Fatalf("helper: %q, %v", lines.Text(), lines.Err())
			}
			if round == 0 {
				if list := mustOrphans(t, dir); len(list) != 0 {
					t.Fatalf("a living process has orphans: %+v", list)
				}
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		// From the first line on: the helper wrote on until it died.
		outstanding := map[uint64]Kind{}
		var changed, restoring uint64
		for lines.Scan() {
			var n uint64
			switch what, _, _ := strings.Cut(lines.Text(), " "); what {
			case "changed":
				_, _ = fmt.Sscanf(lines.Text(), "changed %d", &n)
				changed = n
				outstanding[n+1_000_000] = KeepAlive
			case "restoring":
				_, _ = fmt.Sscanf(lines.Text(), "restoring %d", &restoring)
			case "restored":
				_, _ = fmt.Sscanf(lines.Text(), "restored %d", &n)
				delete(outstanding, n)
			}
		}
		_ = cmd.Wait()

		list := mustOrphans(t, dir)
		if len(list) != 1 || int(list[0].PID) != cmd.Process.Pid {
			t.Fatalf("got %+v, want the journal of %d", list, cmd.Process.Pid)
		}
		found := map[uint64]Kind{}
		for _, r := range list[0].Records {
			found[r.ID.Cookie] = r.Kind
		}
		for n := uint64(1); n <= changed; n++ {
			if found[n] != ReuseAddr {
				t.Fatalf("socket %d of %d was changed and is forgotten", n, changed)
			}
		}
		for n := range outstanding {
			// The last Restored may be durable although nobody said so.
			if found[n] != KeepAlive && n != restoring {
				t.Fatalf("socket %d was changed and is forgotten", n)
			}
		}
		if again := mustOrphans(t, dir); len(again) != 0 {
			t.Fatalf("given to a second one to replay: %+v", again)
		}
		if err := list[0].Remove(); err != nil {
			t.Fatal(err)
		}
		if again := mustOrphans(t, dir); len(again) != 0 {
			t.Fatalf("still there after Remove: %+v", again)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// A batch that did not fit leaves nothing behind, and the next one counts.
func TestDiskFull(t *testing.T) {
	dir := runtimeDir(t)
	cmd, lines := start(t, "full", dir)
	for lines.Scan() {
		t.Errorf("helper: %s", lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	list := mustOrphans(t, dir)
	if len(list) != 1 || list[0].Torn != 0 || !slices.Equal(list[0].Records, []Record{keep(1, 60), keep(2, 60)}) {
		t.Errorf("got %+v, want the batches before and after", list)
	}
}

// A process that was killed and not yet waited for is gone.
func TestOrphanOfZombie(t *testing.T) {
	dir := runtimeDir(t)
	cmd, lines := start(t, "append", dir)
	if !lines.Scan() || lines.Text() != "changed 1" {
		t.Fatalf("helper: %q, %v", lines.Text(), lines.Err())
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); len(mustOrphans(t, dir)) == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not an orphan after 30 s")
		}
	}
}

// put writes a journal as another process would have.
func put(t *testing.T, dir string, h header, b []byte) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, h.fileName())
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func us(t *testing.T) header {
	t.Helper()
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	began, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	return header{boot: boot, pid: int32(os.Getpid()), start: began}
}

func TestOrphansOwners(t *testing.T) {
	ours := us(t)
	reused, foreign, undone := ours, ours, ours
	reused.start--
	foreign.boot[0] ^= 1
	undone.start -= 2
	for _, tt := range []struct {
		name   string
		h      header
		data   []byte
		orphan bool
		kept   bool
	}{
		{"same pid, same start", ours, encode(ours, reuse(1, 1)), false, true},
		{"same pid, another start", reused, encode(reused, reuse(1, 1)), true, true},
		{"another boot", foreign, encode(foreign, reuse(1, 1)), false, false},
		{"nothing to put back", undone, encode(undone, reuse(1, 1), restored(1)), false, false},
		{"hostile pid", header{boot: ours.boot, pid: -1, start: 1}, encode(header{boot: ours.boot, pid: -1, start: 1}, reuse(1, 1)), true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := runtimeDir(t)
			path := put(t, dir, tt.h, tt.data)
			if tt.h.pid < 0 { // no such name is ever made
				path = filepath.Join(dir, "999999999-1"+fileSuffix)
				if err := os.Rename(filepath.Join(dir, tt.h.fileName()), path); err != nil {
					t.Fatal(err)
				}
			}
			list := mustOrphans(t, dir)
			if got := len(list) == 1; got != tt.orphan {
				t.Fatalf("got %+v, want orphan: %v", list, tt.orphan)
			}
			if tt.orphan && !slices.Equal(list[0].Records, []Record{reuse(1, 1)}) {
				t.Errorf("got %+v", list[0].Records)
			}
			if _, err := os.Stat(path); (err == nil) != tt.kept {
				t.Errorf("file: %v, want kept: %v", err, tt.kept)
			}
		})
	}
}

func TestOrphansTornTail(t *testing.T) {
	dir := runtimeDir(t)
	h := us(t)
	h.start--
	b := encode(h, reuse(1, 1), keep(2, 7200))
	put(t, dir, h, b[:len(b)-5])
	list := mustOrphans(t, dir)
	if len(list) != 1 || !slices.Equal(list[0].Records, []Record{reuse(1, 1)}) {
		t.Fatalf("got %+v, want the record before the torn one", list)
	}
	want := keep(2, 0)
	if torn := int64(want.size() + frameSize - 5); list[0].Torn != torn {
		t.Errorf("%d bytes torn, want %d", list[0].Torn, torn)
	}
}

func TestOrphansKeptForLater(t *testing.T) {
	dir := runtimeDir(t)
	h := us(t)
	h.start--
	put(t, dir, h, encode(h, reuse(1, 1)))
	list := mustOrphans(t, dir)
	if len(list) != 1 {
		t.Fatalf("got %+v, want one", list)
	}
	if err := list[0].Close(); err != nil {
		t.Fatal(err)
	}
	if again := mustOrphans(t, dir); len(again) != 1 {
		t.Errorf("after Close: got %+v, want it once more", again)
	}
}

// Files that are not journals are left alone; a journal that cannot be read
// is reported and does not hide the others.
func TestOrphansAmongOtherFiles(t *testing.T) {
	dir := runtimeDir(t)
	h := us(t)
	h.start--
	put(t, dir, h, encode(h, reuse(1, 1)))
	damaged := h
	damaged.start--
	b := encode(damaged, reuse(2, 1))
	b[headerSize-1] ^= 1
	put(t, dir, damaged, b)
	gone := header{boot: h.boot, pid: h.pid, start: h.start - 7}
	for name, content := range map[string]string{
		"ask.lock": "1\n", "x" + fileSuffix: "", "1-2-3" + fileSuffix: "", "01-2" + fileSuffix: "",
		gone.fileName() + newSuffix: "half", us(t).fileName() + newSuffix: "half",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/dev/zero", filepath.Join(dir, "5-5"+fileSuffix)); err != nil {
		t.Fatal(err)
	}
	list, err := Orphans(dir)
	if !errors.Is(err, errHeader) || !strings.Contains(err.Error(), damaged.fileName()) {
		t.Errorf("got %v, want the damaged file named", err)
	}
	if len(list) != 1 || !slices.Equal(list[0].Records, []Record{reuse(1, 1)}) {
		t.Fatalf("got %+v, want the good one", list)
	}
	if err := list[0].Remove(); err != nil {
		t.Fatal(err)
	}
	for name, kept := range map[string]bool{
		"ask.lock": true, "x" + fileSuffix: true, "1-2-3" + fileSuffix: true, "01-2" + fileSuffix: true, "5-5" + fileSuffix: true,
		damaged.fileName(): true, gone.fileName() + newSuffix: false, us(t).fileName() + newSuffix: true,
	} {
		if _, err := os.Lstat(filepath.Join(dir, name)); (err == nil) != kept {
			t.Errorf("%s: %v, want kept: %v", name, err, kept)
		}
	}
}
