package journal

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

func runtimeDir(t *testing.T) string { return filepath.Join(t.TempDir(), "deadpeer") }

func mustOpen(t *testing.T, dir string, o Options) *Journal {
	t.Helper()
	j, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func mustAppend(t *testing.T, j *Journal, records ...Record) {
	t.Helper()
	if err := j.Append(records); err != nil {
		t.Fatal(err)
	}
}

// onDisk reads the journal of j as a later process would.
func onDisk(t *testing.T, path string) (ledger, int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, l, torn, err := read(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return l, torn
}

func TestAppendAndClose(t *testing.T) {
	dir := runtimeDir(t)
	j := mustOpen(t, dir, Options{})
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v; want mode 0700", st, err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second journal of this process: got %v, want fs.ErrExist", err)
	}
	mustAppend(t, j, reuse(1, 1), keep(2, 7200), keep(1, 60))
	mustAppend(t, j)
	mustAppend(t, j, restored(2))
	if n := j.Outstanding(); n != 1 {
		t.Errorf("%d outstanding, want 1", n)
	}
	want := []Record{reuse(1, 1), keep(1, 60)}
	if l, torn := onDisk(t, j.path); !slices.Equal(l.records(), want) || torn != 0 {
		t.Errorf("on disk: %+v, %d torn; want %+v", l.records(), torn, want)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(j.path); err != nil {
		t.Errorf("closed with records outstanding: %v, want the file kept", err)
	}
	if err := j.Append([]Record{reuse(3, 1)}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("append after close: got %v, want os.ErrClosed", err)
	}
	if err := j.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}
}

func TestCloseRemovesWhatIsUndone(t *testing.T) {
	dir := runtimeDir(t)
	j := mustOpen(t, dir, Options{})
	mustAppend(t, j, reuse(1, 1))
	mustAppend(t, j, restored(1))
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	mustOpen(t, dir, Options{}) // there may be a next one
}

func TestAppendRefusesNonsense(t *testing.T) {
	j := mustOpen(t, runtimeDir(t), Options{})
	for _, r := range []Record{{}, {Kind: 99, ID: id(1)}, {Kind: ReuseAddr}} {
		if err := j.Append([]Record{reuse(1, 1), r}); err == nil {
			t.Errorf("%+v was accepted", r)
		}
	}
	if l, torn := onDisk(t, j.path); len(l) != 0 || torn != 0 || j.Outstanding() != 0 {
		t.Errorf("a refused batch left %d records, %d torn bytes", len(l), torn)
	}
}

func TestAppendAfterFailureStaysFailed(t *testing.T) {
	j := mustOpen(t, runtimeDir(t), Options{})
	mustAppend(t, j, reuse(1, 1))
	file := j.file
	var err error
	if j.file, err = os.Open(j.path); err != nil { // not open for writing
		t.Fatal(err)
	}
	if err := j.Append([]Record{reuse(2, 1)}); err == nil {
		t.Fatal("a write to a read-only file succeeded")
	}
	_ = j.file.Close()
	j.file = file
	if err := j.Append([]Record{reuse(3, 1)}); err == nil {
		t.Error("the journal went on although what is on disk is not known")
	}
	if l, _ := onDisk(t, j.path); len(l) != 1 || j.Outstanding() != 1 {
		t.Errorf("%d on disk, %d outstanding, want the one that was durable", len(l), j.Outstanding())
	}
}

// A journal that lives for ever does not grow for ever, and loses nothing.
func TestCompaction(t *testing.T) {
	j := mustOpen(t, runtimeDir(t), Options{CompactAt: 4096})
	mustAppend(t, j, reuse(1, 1), keep(1, 7200))
	for i := range uint64(2000) {
		mustAppend(t, j, keep(100+i, 60))
		mustAppend(t, j, restored(100+i))
	}
	st, err := os.Stat(j.path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() > 16384 {
		t.Errorf("%d bytes for two records", st.Size())
	}
	want := []Record{reuse(1, 1), keep(1, 7200)}
	if l, torn := onDisk(t, j.path); !slices.Equal(l.records(), want) || torn != 0 {
		t.Errorf("on disk: %+v, %d torn; want %+v", l.records(), torn, want)
	}
	if st.Size() != j.end {
		t.Errorf("the file ends at %d, the journal believes %d", st.Size(), j.end)
	}
}

func TestCompactionWithMuchOutstanding(t *testing.T) {
	j := mustOpen(t, runtimeDir(t), Options{CompactAt: 1})
	for i := range uint64(300) {
		mustAppend(t, j, reuse(i+1, 1))
	}
	if l, torn := onDisk(t, j.path); len(l) != 300 || torn != 0 {
		t.Errorf("%d of 300 on disk, %d torn", len(l), torn)
	}
}

func TestAppendConcurrently(t *testing.T) {
	j := mustOpen(t, runtimeDir(t), Options{CompactAt: 2048})
	var wg sync.WaitGroup
	for w := range uint64(4) {
		wg.Go(func() {
			for i := range uint64(50) {
				if err := j.Append([]Record{reuse(1000*w+i+1, 1), keep(1000*w+i+501, 60)}); err != nil {
					t.Error(err)
				}
				if err := j.Append([]Record{restored(1000*w + i + 501)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if l, torn := onDisk(t, j.path); len(l) != 200 || torn != 0 || j.Outstanding() != 200 {
		t.Errorf("%d on disk, %d torn, %d outstanding; want 200", len(l), torn, j.Outstanding())
	}
}

func TestAppendDoesNotAllocatePerRecord(t *testing.T) {
	j := mustOpen(t, runtimeDir(t), Options{})
	const n = 100
	var originals, undone []Record
	for i := range uint64(n) {
		originals, undone = append(originals, keep(i+1, 60)), append(undone, restored(i+1))
	}
	round := func() { mustAppend(t, j, originals...); mustAppend(t, j, undone...) }
	round()
	if allocs := testing.AllocsPerRun(20, round); allocs > n/10 {
		t.Errorf("%v allocations for %d records", allocs, 2*n)
	}
}

func TestFolder(t *testing.T) {
	base := t.TempDir()
	good := filepath.Join(base, "good")
	for name, prepare := range map[string]func(path string) error{
		"symlink":        func(p string) error { return os.Symlink(good, p) },
		"file":           func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"group-writable": func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chmod(p, 0o770)) },
		"world-writable": func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chmod(p, 0o1777)) },
		"of-another":     func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chown(p, 12345, -1)) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.MkdirAll(good, 0o700); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(base, name)
			if err := prepare(dir); errors.Is(err, fs.ErrPermission) {
				t.Skip("giving a folder away needs CAP_CHOWN")
			} else if err != nil {
				t.Fatal(err)
			}
			if _, err := Open(dir, Options{}); err == nil {
				t.Error("Open accepted it")
			}
			if _, err := Open(dir+"/", Options{}); err == nil {
				t.Error("Open accepted it with a slash")
			}
			if _, err := Orphans(dir); err == nil {
				t.Error("Orphans accepted it")
			}
			if _, err := Lock(t.Context(), dir); err == nil {
				t.Error("Lock accepted it")
			}
			if entries, err := os.ReadDir(good); err != nil || len(entries) != 0 {
				t.Errorf("written through a symlink: %v, %v", entries, err)
			}
		})
	}
	if orphans, err := Orphans(filepath.Join(base, "none")); err != nil || len(orphans) != 0 {
		t.Errorf("a folder that is not there: %v, %v", orphans, err)
	}
	if _, err := Open(filepath.Join(base, "none", "deeper"), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing parent: got %v, want fs.ErrNotExist", err)
	}
}

func TestParseStartTime(t *testing.T) {
	tail := " 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 8765 1000 100"
	for _, tt := range []struct {
		stat string
		want uint64
		err  error
	}{
		{"42 (cat) S" + tail, 8765, nil},
		{"42 (a) S 1) (b) R" + tail, 8765, nil},
		{"42 (cat) Z" + tail, 0, fs.ErrNotExist},
		{"42 (cat) X" + tail, 0, fs.ErrNotExist},
	} {
		if got, err := parseStartTime([]byte(tt.stat)); got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%q: got %d, %v; want %d, %v", tt.stat, got, err, tt.want, tt.err)
		}
	}
	for _, stat := range []string{"", ")", "42 (cat) S 1 1", "42 (cat) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 x"} {
		if got, err := parseStartTime([]byte(stat)); err == nil {
			t.Errorf("%q: got %d, want an error", stat, got)
		}
	}
}

func FuzzParseStartTime(f *testing.F) {
	f.Add([]byte("42 (cat) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 8765 1000 100"))
	f.Add([]byte("42 (a) b) Z"))
	f.Fuzz(func(t *testing.T, stat []byte) {
		start, err := parseStartTime(stat)
		if err == nil && !strings.Contains(string(stat), strconv.FormatUint(start, 10)) {
			t.Errorf("%q: got %d, which is not in it", stat, start)
		}
	})
}
