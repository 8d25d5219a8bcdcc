package testnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"runtime"
	"sync"
	"time"

	"deadpeer/internal/netns"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Net is a set of hosts and the wire between them. Safe for concurrent use.
type Net struct {
	ctx   context.Context // ends the waiting of Connect, LinkDown and LinkUp
	wire  *Host           // its namespace holds the bridges and their ports
	nft   *nftables.Conn  // in the wire's namespace
	table *nftables.Table

	mu        sync.Mutex // guards what follows, and nft: one batch at a time
	hosts     []*Host
	links     []*Link
	recorders []*Recorder
	closed    bool
}

// New makes an empty Net. When ctx is done nothing more can be connected;
// Close is still needed. Needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
func New(ctx context.Context) (*Net, error) {
	n := &Net{ctx: ctx}
	wire, err := n.newHost("wire", [][2]string{
		// Ports and bridges have no addresses and must not speak.
		{"net.ipv6.conf.default.disable_ipv6", "1"},
		{"net.ipv6.conf.all.disable_ipv6", "1"},
	})
	if err != nil {
		return nil, err
	}
	n.wire = wire
	for _, hook := range []string{"iptables", "ip6tables", "arptables"} {
		// Bridged packets have no business with the IP hooks of the wire.
		err := wire.SetSysctl("net.bridge.bridge-nf-call-"+hook, "0")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, errors.Join(err, wire.close())
		}
	}
	err = wire.Do(func() error {
		if n.nft, err = nftables.New(nftables.AsLasting()); err != nil {
			return err
		}
		n.table = n.nft.AddTable(&nftables.Table{Family: nftables.TableFamilyNetdev, Name: "wire"})
		return n.nft.Flush()
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make nftables table for the wire: %w", err), n.Close())
	}
	return n, nil
}

// Host makes a host: a namespace with its loopback up. The name is for messages.
func (n *Net) Host(name string) (*Host, error) { return n.addHost(name, nil) }

// Router makes a host that forwards packets between its links. The hosts
// behind it need [Host.RouteVia].
func (n *Net) Router(name string) (*Host, error) {
	return n.addHost(name, [][2]string{
		{"net.ipv4.ip_forward", "1"},
		{"net.ipv6.conf.all.forwarding", "1"},
	})
}

func (n *Net) addHost(name string, sysctls [][2]string) (*Host, error) {
	h, err := n.newHost(name, append([][2]string{
		{"net.ipv6.conf.all.disable_ipv6", "0"},
		{"net.ipv6.conf.default.disable_ipv6", "0"},
		// Link-local addresses must not wait for duplicate address detection
		// (RFC 4862 section 5.4), since neighbour discovery speaks from them.
		{"net.ipv6.conf.default.accept_dad", "0"},
		{"net.ipv6.conf.default.router_solicitations", "0"},
	}, sysctls...))
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, errors.Join(fmt.Errorf("make host %s: %w", name, net.ErrClosed), h.close())
	}
	n.hosts = append(n.hosts, h)
	return h, nil
}

func (n *Net) newHost(name string, sysctls [][2]string) (*Host, error) {
	ns, err := newNamespace()
	if err != nil {
		return nil, fmt.Errorf("make host %s: %w", name, err)
	}
	h := &Host{net: n, name: name, ns: ns}
	err = h.Do(func() error {
		if h.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return err
		}
		lo, err := h.nl.LinkByName("lo")
		if err != nil {
			return err
		}
		return h.nl.LinkSetUp(lo)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make host %s: %w", name, err), h.close())
	}
	for _, s := range sysctls {
		if err := h.SetSysctl(s[0], s[1]); err != nil {
			return nil, errors.Join(fmt.Errorf("make host %s: %w", name, err), h.close())
		}
	}
	return h, nil
}

// Close ends the recorders and lets go of all namespaces. The kernel removes
// a namespace, with its links, once no socket, process or [netns.NS] of the
// caller's is left in it. Close may be called again.
func (n *Net) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	n.closed = true
	var errs []error
	for _, r := range n.recorders {
		errs = append(errs, r.Close())
	}
	if n.nft != nil {
		errs = append(errs, n.nft.CloseLasting())
	}
	for _, h := range append(n.hosts, n.wire) {
		errs = append(errs, h.close())
	}
	return errors.Join(errs...)
}

// newNamespace makes a network namespace that only the returned handle keeps.
func newNamespace() (ns *netns.NS, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		home, homeErr := netns.Current()
		if homeErr != nil {
			runtime.UnlockOSThread()
			err = homeErr
			return
		}
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			ns, err = netns.Current()
			if unix.Setns(home.Fd(), unix.CLONE_NEWNET) != nil {
				_ = home.Close()
				return // still locked: the thread ends with this goroutine
			}
		} else {
			err = fmt.Errorf("make network namespace: %w", needCapability(err))
		}
		runtime.UnlockOSThread()
		_ = home.Close() // nothing was written to it
	}()
	<-done
	return ns, err
}

// flush sends the batch. A closed Conn of the library would send it to the
// namespace of whatever thread calls.
func (n *Net) flush() error {
	if n.closed {
		return net.ErrClosed
	}
	return n.nft.Flush()
}

// waitTime bounds what happens within milliseconds on an idle machine.
const waitTime = 10 * time.Second

// await polls until ok, since the kernel settles carrier and operational
// state of interfaces from a work queue (net/core/link_watch.c).
func (n *Net) await(what string, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(n.ctx, waitTime)
	defer cancel()
	for {
		switch done, err := ok(); {
		case err != nil:
			return fmt.Errorf("wait for %s: %w", what, err)
		case done:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

func needCapability(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (needs CAP_SYS_ADMIN and CAP_NET_ADMIN)", err)
	}
	return err
}
