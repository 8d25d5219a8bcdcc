package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"deadpeer/internal/testnet"
)

const (
	perHolder = 5000 // connections of one process
	aliases   = 24   // addresses a peer host connects from
)

// lab is a server with idle connections from two peer hosts.
type lab struct {
	net     *testnet.Net
	links   [2]*testnet.Link // the second gets cut
	peers   holders
	agent   *exec.Cmd
	orders  *json.Encoder
	answers *json.Decoder
	stdin   interface{ Close() error }
	dead    netip.Prefix // where the peers behind the second link live
}

// newLab makes n connections.
func newLab(ctx context.Context, o options, n int) (_ *lab, err error) {
	l := &lab{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make %d connections: %w", n, err), l.close())
		}
	}()
	if l.net, err = testnet.New(ctx); err != nil {
		return nil, err
	}
	server, err := l.net.Host("server")
	if err != nil {
		return nil, err
	}
	if err := l.startAgent(ctx, server, o.self); err != nil {
		return nil, err
	}
	if _, err := l.tell(order{Accept: split(n, perHolder), KeepAlive: o.keepalive}); err != nil {
		return nil, err
	}
	for i := range l.links {
		peer, err := l.net.Host("peer" + strconv.Itoa(i))
		if err != nil {
			return nil, err
		}
		if l.links[i], err = l.net.Connect(server, peer); err != nil {
			return nil, err
		}
		own, err := addAliases(peer, l.links[i])
		if err != nil {
			return nil, err
		}
		to := netip.AddrPortFrom(l.links[i].IPv4(server), serverPort)
		for _, part := range split((n+i)/2, perHolder) {
			cmd := exec.CommandContext(ctx, o.self, role, "connect", strconv.Itoa(part), to.String(), own)
			if err := l.peers.start(cmd, peer.Start); err != nil {
				return nil, err
			}
		}
		if i == 1 {
			if l.dead, err = l.links[i].IPv4(peer).Prefix(24); err != nil {
				return nil, err
			}
		}
	}
	if err := l.peers.settle(); err != nil {
		return nil, err
	}
	if _, err := l.tell(order{Settle: true}); err != nil {
		return nil, err
	}
	time.Sleep(time.Second) // for the last acknowledgements
	return l, nil
}

// split cuts n into parts of at most most.
func split(n, most int) (parts []int) {
	for ; n > 0; n -= most {
		parts = append(parts, min(n, most))
	}
	return parts
}

func (l *lab) startAgent(ctx context.Context, server *testnet.Host, self string) error {
	l.agent = exec.CommandContext(ctx, self, role, "agent")
	l.agent.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	l.agent.Stderr = os.Stderr
	in, err := l.agent.StdinPipe()
	if err != nil {
		return err
	}
	out, err := l.agent.StdoutPipe()
	if err != nil {
		return err
	}
	l.stdin, l.orders, l.answers = in, json.NewEncoder(in), json.NewDecoder(out)
	return server.Start(l.agent)
}

// tell gives the agent an order and waits for its outcome.
func (l *lab) tell(o order) (outcome, error) {
	if err := l.orders.Encode(o); err != nil {
		return outcome{}, fmt.Errorf("tell agent: %w", err)
	}
	var r outcome
	if err := l.answers.Decode(&r); err != nil {
		return outcome{}, fmt.Errorf("hear from agent: %w", err)
	}
	if r.Error != "" {
		return r, errors.New(r.Error)
	}
	return r, nil
}

// addAliases gives a peer host the addresses to connect from.
func addAliases(peer *testnet.Host, link *testnet.Link) (string, error) {
	var list []string
	base := link.IPv4(peer).As4()
	err := peer.Do(func() error {
		name, _ := link.Interface(peer)
		dev, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for i := range aliases {
			ip := net.IPv4(base[0], base[1], base[2], byte(10+i))
			if err := netlink.AddrAdd(dev, &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(24, 32)}}); err != nil {
				return fmt.Errorf("add address %s: %w", ip, err)
			}
			list = append(list, ip.String())
		}
		return nil
	})
	return strings.Join(list, ","), err
}

// close ends the agent, with it the server's processes, and the peers'.
func (l *lab) close() error {
	var errs []error
	if l.agent != nil && l.agent.Process != nil {
		errs = append(errs, l.stdin.Close(), l.agent.Wait())
	}
	errs = append(errs, l.peers.end())
	if l.net != nil {
		errs = append(errs, l.net.Close())
	}
	return errors.Join(errs...)
}
