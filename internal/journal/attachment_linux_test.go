package journal

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"deadpeer/internal/conn"
)

func attached(cookie uint64, idle int32) Attached {
	was := Values{KeepAlive: true, Idle: idle, Interval: 75, Probes: 9}
	set := was
	set.Idle = 30
	return Attached{ID: id(cookie), Owner: conn.Owner{PID: 7, FD: 8}, Rule: 3, Was: was, Found: was, Set: set}
}

func reopen(t *testing.T, dir string) *Attachment {
	t.Helper()
	list, err := Attachments(dir)
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	t.Cleanup(func() { _ = list[0].Close() })
	return list[0]
}

func TestAttachment(t *testing.T) {
	dir := runtimeDir(t)
	if list, err := Attachments(dir); err != nil || len(list) != 0 {
		t.Errorf("none yet: %v, %v", list, err)
	}
	a, err := CreateAttachment(dir, "a1b2", []byte("about"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	if _, err := CreateAttachment(dir, "a1b2", nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second of that name: got %v", err)
	}
	for _, bad := range []string{"", "../x", "A", "12345678901234567"} {
		if _, err := CreateAttachment(dir, bad, nil); err == nil {
			t.Errorf("accepted the name %q", bad)
		}
	}
	list := []Attached{attached(1, 7200), attached(2, 60), attached(3, 61)}
	if err := errors.Join(a.Add(list), a.Applied([]conn.ID{id(1), id(2)}), a.Forget([]conn.ID{id(2)})); err != nil {
		t.Fatal(err)
	}
	want := []Attached{attached(1, 7200), attached(3, 61)}
	want[0].Applied = true
	for name, a := range map[string]*Attachment{"at once": a, "read again": reopen(t, dir)} {
		if !slices.Equal(a.Sockets(), want) || a.ID != "a1b2" || string(a.About()) != "about" {
			t.Errorf("%s: %+v", name, a.Sockets())
		}
	}
	if err := errors.Join(a.Add([]Attached{attached(1, 5)}), a.Remove()); err != nil {
		t.Fatal(err)
	}
	if list, err := Attachments(dir); err != nil || len(list) != 0 {
		t.Errorf("removed: %v, %v", list, err)
	}
}

// What a death in mid-write leaves is not believed, and not in the way of what
// comes next.
func TestAttachmentTorn(t *testing.T) {
	dir := runtimeDir(t)
	a, err := CreateAttachment(dir, "1", nil)
	if err != nil {
		t.Fatal(err)
	}
	path := a.path
	if err := errors.Join(a.Add([]Attached{attached(1, 1)}), a.Add([]Attached{attached(2, 2)}), a.Close()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := 1; cut < attachedSize; cut += 7 {
		if err := os.WriteFile(path, whole[:len(whole)-cut], 0o600); err != nil {
			t.Fatal(err)
		}
		b := reopen(t, dir)
		if b.Len() != 1 {
			t.Fatalf("%d bytes short: %d sockets", cut, b.Len())
		}
		if err := errors.Join(b.Add([]Attached{attached(3, 3)}), b.Close()); err != nil {
			t.Fatal(err)
		}
		if b := reopen(t, dir); b.Len() != 2 {
			t.Fatalf("%d bytes short, then one more: %d sockets", cut, b.Len())
		}
	}
}

// One of another boot is deleted, one that is damaged is kept and named.
func TestAttachmentOfAnotherBoot(t *testing.T) {
	dir := runtimeDir(t)
	for _, name := range []string{"1", "2", "3"} {
		a, err := CreateAttachment(dir, name, nil)
		if err != nil {
			t.Fatal(err)
		}
		switch name {
		case "2":
			a.body.boot[0]++
			err = a.rewrite()
		case "3":
			_, err = a.file.WriteAt([]byte{0xff}, int64(len(attachmentMagic)))
		}
		if err := errors.Join(err, a.Close()); err != nil {
			t.Fatal(err)
		}
	}
	list, err := Attachments(dir)
	if err == nil || len(list) != 1 || list[0].ID != "1" {
		t.Errorf("%v, %v", list, err)
	}
	for _, a := range list {
		_ = a.Close()
	}
	for name, want := range map[string]bool{"1": true, "2": false, "3": true} {
		if _, err := os.Stat(filepath.Join(dir, attachmentFolder, name+attachmentSuffix)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A file that changes much does not grow for ever.
func TestAttachmentCompaction(t *testing.T) {
	dir := runtimeDir(t)
	a, err := CreateAttachment(dir, "1", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	for n := range uint64(1200) {
		if err := errors.Join(a.Add([]Attached{attached(n+1, 1)}), a.Forget([]conn.ID{id(n)})); n > 0 && err != nil {
			t.Fatal(err)
		}
	}
	st, err := a.file.Stat()
	if err != nil || st.Size() > 1000*attachedSize || a.Len() != 1 {
		t.Errorf("%d bytes, %d sockets, %v", st.Size(), a.Len(), err)
	}
	if b := reopen(t, dir); b.Len() != 1 {
		t.Errorf("%d sockets", b.Len())
	}
}

// An attachment tells whether its making came to an end, also after a death in
// mid-write and when its file was made smaller; what that left is removed.
func TestAttachmentWhole(t *testing.T) {
	dir := runtimeDir(t)
	a, err := CreateAttachment(dir, "1", nil)
	if err != nil {
		t.Fatal(err)
	}
	for n, whole := range []bool{false, true, false, true} {
		if n > 0 {
			err = a.SetWhole(whole)
		}
		if b := reopen(t, dir); err != nil || a.Whole() != whole || b.Whole() != whole {
			t.Errorf("%d: %v, read again %v, want %v (%v)", n, a.Whole(), b.Whole(), whole, err)
		}
		if err := a.rewrite(); err != nil {
			t.Fatal(err)
		}
		if b := reopen(t, dir); b.Whole() != whole {
			t.Errorf("%d: rewritten: %v, want %v", n, b.Whole(), whole)
		}
	}
	torn := a.path + newSuffix
	if err := errors.Join(os.WriteFile(torn, []byte("x"), 0o600), a.Close()); err != nil {
		t.Fatal(err)
	}
	if n, err := RemoveTorn(dir); n != 1 || err != nil {
		t.Errorf("removed %d, %v", n, err)
	}
	if _, err := os.Stat(torn); err == nil || !reopen(t, dir).Whole() {
		t.Errorf("after removing: %v", err)
	}
}

// A look at journals that are left changes nothing.
func TestLeft(t *testing.T) {
	dir := runtimeDir(t)
	h := header{pid: 1 << 30, start: 1}
	boot, err := bootID()
	if h.boot = boot; errors.Join(err, prepareDir(dir)) != nil {
		t.Fatal(err)
	}
	empty, record := h.append(nil), Record{Kind: ReuseAddr, ID: id(1), ReuseAddr: 1}
	other := h
	other.start++
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, h.fileName()), empty, 0o600),
		os.WriteFile(filepath.Join(dir, other.fileName()), record.append(other.append(nil)), 0o600),
		os.WriteFile(filepath.Join(dir, h.fileName()+newSuffix), nil, 0o600),
	); err != nil {
		t.Fatal(err)
	}
	for n, list := range []func(string) ([]Orphan, error){Left, Orphans} {
		found, err := list(dir)
		if err != nil || len(found) != 1 || len(found[0].Records) != 1 {
			t.Fatalf("%d: %v, %v", n, found, err)
		}
		_ = found[0].Close()
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 3-2*n {
			t.Errorf("%d: %d files are there, %v", n, len(entries), err)
		}
	}
}

func FuzzReadAttachment(f *testing.F) {
	one, two := attached(1, 7200), attached(2, 60)
	two.Applied = true
	body := attachmentBody{boot: [16]byte{1}, about: []byte("{}"), sockets: sockets{one.ID: one, two.ID: two}}
	whole := body.append(nil)
	f.Add(whole)
	f.Add(whole[:len(whole)-9])
	f.Add(appendWhole(whole, false))
	f.Add([]byte(attachmentMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := readAttachment(bytes.NewReader(b))
		if err != nil {
			return
		}
		if a.end > int64(len(b)) {
			t.Fatalf("ends at %d of %d", a.end, len(b))
		}
		again, err := readAttachment(bytes.NewReader(a.append(nil)))
		if err != nil || !slices.Equal(again.sockets.list(), a.sockets.list()) || !bytes.Equal(again.about, a.about) || again.partly != a.partly {
			t.Errorf("%v: not read back as it was", err)
		}
	})
}
