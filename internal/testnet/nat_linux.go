package testnet

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// OnForgotten is what a NAT does with segments of a connection it does not know.
type OnForgotten int

// What NATs do.
const (
	Drop  OnForgotten = iota // silence
	Reset                    // answer RST
)

// NATOptions says how a NAT remembers. The zero value remembers for five
// days, never takes an unknown connection up, and drops what it does not know.
type NATOptions struct {
	// Established is how long an idle connection is remembered, rounded up
	// to seconds (nf_conntrack_tcp_timeout_established); 0 for the kernel's
	// five days.
	Established time.Duration
	// Loose makes the next segment from the inside renew a forgotten
	// mapping (nf_conntrack_tcp_loose), as Linux does by default.
	Loose       bool
	OnForgotten OnForgotten
}

// NAT is a router that hides the inside behind its address on the outside
// link (RFC 3022 section 2.2), for IPv4 and IPv6.
type NAT struct {
	Router  *Host
	Inside  *Link // the inside host's, with the NAT as the default gateway
	Outside *Link
}

// NAT puts a NAT between two hosts. inside reaches outside at
// NAT.Outside.IPv4(outside); outside sees NAT.Outside.IPv4(NAT.Router).
func (n *Net) NAT(inside, outside *Host, opts NATOptions) (*NAT, error) {
	router, err := n.Router("nat")
	if err != nil {
		return nil, err
	}
	nat := &NAT{Router: router}
	if nat.Inside, err = n.Connect(inside, router); err != nil {
		return nil, err
	}
	if nat.Outside, err = n.Connect(router, outside); err != nil {
		return nil, err
	}
	if err := inside.RouteVia(nat.Inside); err != nil {
		return nil, err
	}
	// The rules come first: they bring up the namespace's connection tracking.
	if err := nat.masquerade(opts.OnForgotten); err != nil {
		return nil, fmt.Errorf("make nat: %w", needCapability(err))
	}
	loose := "0"
	if opts.Loose {
		loose = "1"
	}
	if err := router.SetSysctl("net.netfilter.nf_conntrack_tcp_loose", loose); err != nil {
		return nil, err
	}
	if opts.Established > 0 {
		seconds := (opts.Established + time.Second - 1) / time.Second
		return nat, router.SetSysctl("net.netfilter.nf_conntrack_tcp_timeout_established", strconv.FormatInt(int64(seconds), 10))
	}
	return nat, nil
}

// Forget empties the NAT's table: it knows no connection any more.
func (nat *NAT) Forget() error {
	err := nat.Router.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
	if err != nil {
		return fmt.Errorf("flush conntrack table: %w", err)
	}
	return nil
}

func (nat *NAT) masquerade(policy OnForgotten) error {
	device, _ := nat.Outside.Interface(nat.Router)
	outside := make([]byte, unix.IFNAMSIZ)
	copy(outside, device)
	iface := func(key expr.MetaKey) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: key, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: outside},
		}
	}
	state := func(bits uint32) []expr.Any {
		return []expr.Any{
			&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
		}
	}
	var refuse expr.Any = &expr.Verdict{Kind: expr.VerdictDrop}
	if policy == Reset {
		refuse = &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}
	}
	tcp := protocol(unix.IPPROTO_TCP)
	return nat.Router.Do(func() error {
		c, err := nftables.New(nftables.AsLasting())
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "nat"})
		chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority, rules ...[]expr.Any) {
			ch := c.AddChain(&nftables.Chain{Table: table, Name: name, Type: kind, Hooknum: hook, Priority: priority})
			for _, r := range rules {
				c.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: r})
			}
		}
		chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource,
			append(iface(expr.MetaKeyOIFNAME), &expr.Masq{}))
		// From the inside, the unknown is what conntrack calls invalid.
		chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter,
			join(tcp, state(expr.CtStateBitINVALID), []expr.Any{refuse}))
		// What comes from the outside for a forgotten mapping is addressed to
		// the router itself.
		chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter,
			join(tcp, iface(expr.MetaKeyIIFNAME), state(expr.CtStateBitINVALID|expr.CtStateBitNEW), []expr.Any{refuse}))
		return errors.Join(c.Flush(), c.CloseLasting())
	})
}

func join(parts ...[]expr.Any) (rule []expr.Any) {
	for _, p := range parts {
		rule = append(rule, p...)
	}
	return rule
}
