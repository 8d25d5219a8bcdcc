package bpf

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/cilium/ebpf"

	"deadpeer/internal/linux"
)

// Features tries what this package can do, by loading every program and
// letting go of it again. It attaches and pins nothing.
func Features() []Feature {
	list := []Feature{
		try("list sockets with owners and settings by BPF", 5, 15, taken[socketsPrograms](loadSockets)),
		try("change settings of live sockets by BPF", 5, 15, taken[policyObjects](loadPolicy)),
		try("end connections by BPF, what they have heard compared under their lock", 6, 5, taken[endObjects](loadEnd)),
		try("policy on new connections (BPF sockops)", 5, 15, func() error {
			if err := loadOfHook(hookProgGreet, hookProgListPlaced, hookProgListStored); err != nil {
				return err
			}
			return taken[ownPrograms](loadOwn)() // which notes what programs set themselves
		}),
		try("hold programs to a policy (BPF setsockopt hook)", 5, 15, func() error {
			return loadOfHook(hookProgEnforce)
		}),
	}
	cgroups := Feature{Name: "cgroup v2 hierarchy, for policy on new connections"}
	if root, err := CgroupRoot(); err != nil {
		cgroups.Detail, cgroups.Mend = err.Error(), "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"
	} else {
		cgroups.OK, cgroups.Detail = true, "mounted at "+root
	}
	pins := Feature{Name: "bpffs, for policy on new connections and programs that stay loaded"}
	if dir, err := PinDir(); err != nil {
		pins.Detail, pins.Mend = err.Error(), "mount -t bpf bpf "+bpffs
	} else {
		pins.OK, pins.Detail = true, "in "+dir
	}
	return append(list, cgroups, pins)
}

// loadOfHook loads some programs of the hook, and the maps they need.
func loadOfHook(programs ...string) error {
	if err := Allowed(); err != nil {
		return err
	}
	spec, err := loadHook()
	if err != nil {
		return err
	}
	all := spec.Programs
	spec.Programs = map[string]*ebpf.ProgramSpec{}
	for _, name := range programs {
		spec.Programs[name] = all[name]
	}
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		return explain(err)
	}
	c.Close()
	return nil
}

// taken loads the parts of a spec that O, made by bpf2go, names.
func taken[O any, P interface {
	*O
	io.Closer
}](spec func() (*ebpf.CollectionSpec, error)) func() error {
	return func() error {
		s, err := spec()
		if err != nil {
			return err
		}
		var o O
		if err := load(s, &o); err != nil {
			return err
		}
		return P(&o).Close()
	}
}

// try loads what kernels take from that version on, others where it was
// brought back to them.
func try(name string, major, minor int, do func() error) Feature {
	f := Feature{Name: name}
	err := do()
	_, refused := errors.AsType[*ebpf.VerifierError](err)
	switch {
	case err == nil:
		f.OK, f.Detail = true, "the kernel takes it"
	case errors.Is(err, fs.ErrPermission) && !refused:
		f.Detail, f.Mend = "not permitted", "run as root, or grant CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
	case errors.Is(err, errors.ErrUnsupported):
		f.Mend = fmt.Sprintf("a kernel of %d.%d or later with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_DEBUG_INFO_BTF", major, minor)
		if f.Detail = brief(err); linux.Before(major, minor) {
			f.Detail = "this kernel does not have it"
		}
	default:
		f.Detail = brief(err)
	}
	return f
}

// brief leaves the verifier's log out.
func brief(err error) string {
	if v, ok := errors.AsType[*ebpf.VerifierError](err); ok {
		return fmt.Sprintf("the kernel refuses the program: %v", v.Cause)
	}
	return err.Error()
}
