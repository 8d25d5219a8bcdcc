package bpf

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"deadpeer/internal/linux"
)

// Allowed finds out cheaply whether BPF may be used at all: making a hash map
// takes the same capability, and loading a program reads megabytes of BTF
// before the kernel is asked. EPERM names what is needed.
func Allowed() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return explain(err)
	}
	return m.Close()
}

// load loads the parts of a spec that objects, a pointer to a struct, names.
func load(spec *ebpf.CollectionSpec, objects any) error {
	if err := Allowed(); err != nil {
		return err
	}
	if err := spec.LoadAndAssign(objects, &ebpf.CollectionOptions{}); err != nil {
		return explain(err)
	}
	return nil
}

// explain adds to a refusal what is needed.
func explain(err error) error {
	var rejected *ebpf.VerifierError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		// Up to Linux 5.10 EPERM is RLIMIT_MEMLOCK as well, and no rights help.
		if linux.Before(5, 11) {
			return fmt.Errorf("use BPF: %w (a kernel of 5.15 or later is needed)", errors.ErrUnsupported)
		}
		return fmt.Errorf("use BPF: %w (needs root, or CAP_BPF and CAP_PERFMON, hooks CAP_NET_ADMIN too, all outside of user namespaces)", unix.EPERM)
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w (%w: a kernel with CONFIG_BPF_SYSCALL is needed)", err, errors.ErrUnsupported)
	case errors.Is(err, btf.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w (%w: a kernel of 5.15 or later with CONFIG_DEBUG_INFO_BTF is needed)", err, errors.ErrUnsupported)
	case errors.As(err, &rejected), errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w (%w by this kernel)", err, errors.ErrUnsupported)
	}
	return err
}
