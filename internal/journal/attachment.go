package journal

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"deadpeer/internal/conn"
)

// Attachment is the file of a policy that was put on sockets of running
// programs, with what each of them had before. Unlike a Journal it outlives
// the process that wrote it, until Remove or the next boot. Whoever changes
// one has the right to ask (Lock).
type Attachment struct {
	ID   string
	path string
	file *os.File
	body attachmentBody
	buf  []byte
}

const (
	attachmentFolder = "attach"
	attachmentSuffix = ".attached"
)

// CreateAttachment makes an empty attachment in the folder of Attachments,
// which it creates and checks as Open does, durable when it returns. about, at
// most MaxAbout bytes, is for the caller. An ID that is taken matches
// fs.ErrExist. It is not Whole yet.
func CreateAttachment(dir, id string, about []byte) (*Attachment, error) {
	a, err := createAttachment(dir, id, about)
	if err != nil {
		return nil, fmt.Errorf("create attachment %s: %w", id, err)
	}
	return a, nil
}

func createAttachment(dir, id string, about []byte) (*Attachment, error) {
	if !validAttachment(id) || len(about) > MaxAbout {
		return nil, fmt.Errorf("id %.20q with %d bytes about it: allowed are 1 to 16 of 0-9 and a-f, and %d bytes", id, len(about), MaxAbout)
	}
	folder := filepath.Join(dir, attachmentFolder)
	if err := errors.Join(prepareDir(dir), prepareDir(folder)); err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	a := &Attachment{
		ID: id, path: filepath.Join(folder, id+attachmentSuffix),
		body: attachmentBody{boot: boot, about: about, sockets: sockets{}, partly: true},
	}
	if _, err := os.Lstat(a.path); err == nil {
		return nil, fs.ErrExist
	}
	return a, a.rewrite()
}

// Attachments reads those in the folder attach below dir, by their IDs, and
// deletes those of an earlier boot, whose sockets are gone. One that cannot be
// read is kept and reported in the error, beside the list of the others. A
// folder that is not there has none; one that Open would refuse is an error.
// Close them.
func Attachments(dir string) ([]*Attachment, error) {
	list, err := attachments(dir)
	if err != nil {
		return list, fmt.Errorf("read attachments: %w", err)
	}
	return list, nil
}

func attachments(dir string) (list []*Attachment, err error) {
	folder := filepath.Join(dir, attachmentFolder)
	if _, err := os.Lstat(folder); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err := errors.Join(checkDir(dir), checkDir(folder)); err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), attachmentSuffix)
		if !ok || !validAttachment(id) || !e.Type().IsRegular() {
			continue
		}
		a := &Attachment{ID: id, path: filepath.Join(folder, e.Name())}
		if err := a.read(); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.path, err))
			continue
		}
		if a.body.boot != boot {
			errs = append(errs, a.Remove())
			continue
		}
		list = append(list, a)
	}
	return list, errors.Join(errs...)
}

// RemoveTorn deletes what a process left that died while it made an attachment
// or made one smaller: the complete one stands beside it. The caller has the
// right to ask.
func RemoveTorn(dir string) (removed int, err error) {
	folder := filepath.Join(dir, attachmentFolder)
	if _, err := os.Lstat(folder); errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err := errors.Join(checkDir(dir), checkDir(folder)); err != nil {
		return 0, fmt.Errorf("remove torn attachments: %w", err)
	}
	entries, err := os.ReadDir(folder)
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), attachmentSuffix+newSuffix) {
			continue
		}
		if removeErr := os.Remove(filepath.Join(folder, e.Name())); removeErr != nil {
			err = errors.Join(err, removeErr)
		} else {
			removed++
		}
	}
	return removed, err
}

func validAttachment(id string) bool {
	return len(id) >= 1 && len(id) <= 16 && strings.Trim(id, "0123456789abcdef") == ""
}

func (a *Attachment) read() error {
	f, err := openFile(a.path, os.O_RDWR)
	if err != nil {
		return err
	}
	if a.body, err = readAttachment(f); err != nil {
		return errors.Join(err, f.Close())
	}
	a.file = f
	return nil
}

// About is what CreateAttachment was given. It stays the attachment's.
func (a *Attachment) About() []byte { return a.body.about }

// Len is how many sockets it holds.
func (a *Attachment) Len() int { return len(a.body.sockets) }

// Sockets lists what it holds, by namespace and cookie.
func (a *Attachment) Sockets() []Attached { return a.body.sockets.list() }

// All visits what Sockets lists, in no order.
func (a *Attachment) All() iter.Seq[Attached] { return maps.Values(a.body.sockets) }

// Whole reports whether attaching and detaching came to their end. An
// attachment of which they did not, while nobody has the right to ask, is what
// a killed process left.
func (a *Attachment) Whole() bool { return !a.body.partly }

// SetWhole notes that attaching or detaching has come to its end, or begins.
func (a *Attachment) SetWhole(whole bool) error {
	if whole == a.Whole() {
		return nil
	}
	return a.change("note in", 1, func(b []byte) []byte { return appendWhole(b, whole) })
}

// Socket gives one of them.
func (a *Attachment) Socket(id conn.ID) (Attached, bool) {
	s, ok := a.body.sockets[id]
	return s, ok
}

// Add remembers sockets, durably when it returns: now change them. After an
// error none of them counts.
func (a *Attachment) Add(list []Attached) error {
	return a.change("add to", len(list), func(b []byte) []byte {
		for i := range list {
			list[i].Applied = false
			b = list[i].append(b)
		}
		return b
	})
}

// Applied notes that these sockets have been changed.
func (a *Attachment) Applied(ids []conn.ID) error { return a.mark("note in", kindApplied, ids) }

// Forget drops sockets that have their own values again, or have ended.
func (a *Attachment) Forget(ids []conn.ID) error {
	if err := a.mark("drop from", kindForgotten, ids); err != nil {
		return err
	}
	const few = 1000
	if a.body.records > few && a.body.records > 4*len(a.body.sockets) {
		_ = a.rewrite() // the old file goes on
	}
	return nil
}

func (a *Attachment) mark(verb string, kind attachedKind, ids []conn.ID) error {
	return a.change(verb, len(ids), func(b []byte) []byte {
		for _, id := range ids {
			b = frame(b, func(b []byte) []byte { return appendID(b, kind, id) })
		}
		return b
	})
}

func (a *Attachment) change(verb string, n int, write func(b []byte) []byte) error {
	if n == 0 {
		return nil
	}
	a.buf = write(a.buf[:0])
	// What a death in mid-write left at the end must not come between.
	err := a.file.Truncate(a.body.end)
	if err == nil {
		_, err = a.file.WriteAt(a.buf, a.body.end)
	}
	if err == nil {
		err = dataSync(a.file)
	}
	if err != nil {
		return fmt.Errorf("%s attachment %s: %w", verb, a.ID, errors.Join(err, a.file.Truncate(a.body.end)))
	}
	a.body.end += int64(len(a.buf))
	a.body.records += n
	for b := a.buf; len(b) > 0; {
		size := longFrameSize + int(uint32(b[0])|uint32(b[1])<<8|uint32(b[2])<<16|uint32(b[3])<<24)
		a.body.apply(b[4 : size-4])
		b = b[size:]
	}
	return nil
}

// rewrite makes the file anew, durable, and under its name only when complete.
func (a *Attachment) rewrite() (err error) {
	f, err := openFile(a.path+newSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()), f.Close())
		}
	}()
	b := a.body.append(nil)
	if _, err = f.Write(b); err != nil {
		return err
	}
	if err = dataSync(f); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), a.path); err != nil {
		return err
	}
	if a.file != nil {
		_ = a.file.Close() // its name is gone, and what it says is in f
	}
	a.file, a.body.end, a.body.records = f, int64(len(b)), len(a.body.sockets)
	return nil
}

// Close lets go of the file and keeps it.
func (a *Attachment) Close() error {
	if a.file == nil {
		return nil
	}
	f := a.file
	a.file = nil
	return f.Close()
}

// Remove deletes the attachment.
func (a *Attachment) Remove() error { return errors.Join(os.Remove(a.path), a.Close()) }

// list sorts the identities, which are small, and copies what belongs to them
// once.
func (s sockets) list() []Attached {
	ids := slices.AppendSeq(make([]conn.ID, 0, len(s)), maps.Keys(s))
	slices.SortFunc(ids, func(a, b conn.ID) int {
		return cmp.Or(cmp.Compare(a.NetNS, b.NetNS), cmp.Compare(a.Cookie, b.Cookie))
	})
	list := make([]Attached, len(ids))
	for i, id := range ids {
		list[i] = s[id]
	}
	return list
}
