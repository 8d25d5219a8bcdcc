package conn

import (
	"math"
	"net/netip"
)

// KernelFilter is the part of a filter the kernel can test while it lists
// sockets (INET_DIAG_REQ_BYTECODE, inet_diag_bc_run), as a tree in which only
// leaves are negated. It lets through at least all that Match does not answer
// with No.
type KernelFilter struct {
	Op    KernelOp
	Kids  []KernelFilter // of KernelAll and KernelAny, at least two
	Not   bool           // a leaf that must not hold
	Peer  bool           // KernelHost, KernelPort*: the peer's side, not the local one
	Host  netip.Prefix   // KernelHost: the zero Prefix is any address of any family
	Port  int32          // KernelHost: -1 is any; KernelPort*: the bound
	Value uint64         // KernelDev: interface index; KernelMark: value; KernelCgroup: id
	Mask  uint32         // KernelMark
}

// KernelOp says what a node of a KernelFilter is.
type KernelOp uint8

// The nodes of a KernelFilter.
const (
	KernelAll         KernelOp = iota // every kid holds
	KernelAny                         // some kid holds
	KernelHost                        // address and port; an IPv4 prefix fits IPv4-mapped addresses, an IPv6 one no IPv4 socket
	KernelPortAtLeast                 // port >= Port
	KernelPortAtMost                  // port <= Port
	KernelDev                         // bound to the interface
	KernelMark                        // mark & Mask == Value
	KernelCgroup                      // in exactly that cgroup
)

// KernelSupport tells what the kernel tests only for some.
type KernelSupport struct {
	Marks   bool // INET_DIAG_BC_MARK_COND answers EPERM without CAP_NET_ADMIN
	Cgroups bool // INET_DIAG_BC_CGROUP_COND answers EINVAL before Linux 5.9
}

// Kernel gives what the kernel can test of the expression, nil when that is
// nothing. States are not in it, they have their own field in the request.
func (f *Filter) Kernel(has KernelSupport) *KernelFilter {
	if f.expr == nil {
		return nil
	}
	if k, ok := has.filter(f.expr, false); ok {
		return &k
	}
	return nil
}

// filter gives ok = false for what the kernel cannot test, negated or not:
// that is taken to hold.
func (has KernelSupport) filter(n node, not bool) (k KernelFilter, ok bool) {
	kids, all, kidsNot := junction(n, not)
	if kids == nil {
		k, ok = has.leaf(n)
		k.Not = k.Not != not
		return k, ok
	}
	k.Op = KernelAny
	if all {
		k.Op = KernelAll
	}
	for _, kid := range kids {
		kk, ok := has.filter(kid, kidsNot)
		switch {
		case !ok && !all:
			return k, false
		case ok && kk.Op == k.Op:
			k.Kids = append(k.Kids, kk.Kids...)
		case ok:
			k.Kids = append(k.Kids, kk)
		}
	}
	if len(k.Kids) == 1 {
		return k.Kids[0], true
	}
	return k, len(k.Kids) > 0
}

func (has KernelSupport) leaf(n node) (KernelFilter, bool) {
	switch p := n.(type) {
	case hostPred:
		if p.prefix.IsValid() || p.port >= 0 {
			return KernelFilter{Op: KernelHost, Peer: p.peer, Host: p.prefix, Port: p.port}, true
		}
	case markPred:
		return KernelFilter{Op: KernelMark, Value: uint64(p.value), Mask: p.mask}, has.Marks
	case numPred:
		switch p.field {
		case fieldSport, fieldDport:
			return portLeaf(p), true
		case fieldFamily: // an IPv6 host condition holds for no IPv4 socket
			v6 := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			return KernelFilter{Op: KernelHost, Host: v6, Port: -1, Not: Family(p.value) == IPv4}, true
		case fieldDev:
			return KernelFilter{Op: KernelDev, Value: p.value}, true
		case fieldMark:
			return KernelFilter{Op: KernelMark, Value: p.value, Mask: math.MaxUint32}, has.Marks && p.op == opEQ
		case fieldCgroup:
			return KernelFilter{Op: KernelCgroup, Value: p.value}, has.Cgroups
		}
	}
	return KernelFilter{}, false
}

func portLeaf(p numPred) KernelFilter {
	k := KernelFilter{Op: KernelHost, Peer: p.field == fieldDport, Port: int32(p.value)}
	switch p.op {
	case opLT, opGE:
		k.Op, k.Not = KernelPortAtLeast, p.op == opLT
	case opLE, opGT:
		k.Op, k.Not = KernelPortAtMost, p.op == opGT
	}
	return k
}
