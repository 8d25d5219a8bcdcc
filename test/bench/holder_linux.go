package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Holders hold connections until their stdin ends. They say "ready" when they
// have all of them. Their sockets come from bare system calls, since package
// net would make each of them wait for an event and cost memory.

// ready says so, and waits until the holder is no longer needed.
func ready() error {
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// allowFiles raises the limit of descriptors to what n of them need.
func allowFiles(n int) error {
	need := uint64(n + 64)
	limit := unix.Rlimit{Cur: need, Max: need}
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	limit.Max = max(need, now.Max)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("allow %d descriptors: %w (needs CAP_SYS_RESOURCE, and fs.nr_open as high)", need, err)
	}
	return nil
}

// holdAccepted accepts N connections from the listener it inherits as
// descriptor 3.
func holdAccepted(args []string) error {
	const listener = 3
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	if err := allowFiles(n); err != nil {
		return err
	}
	for range n {
		for {
			if _, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if err != nil {
			return os.NewSyscallError("accept4", err)
		}
	}
	if err := unix.Close(listener); err != nil {
		return os.NewSyscallError("close", err)
	}
	return ready()
}

// holdConnected makes N connections to an address, in turn from every one of
// a list of own addresses.
func holdConnected(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	server, err := netip.ParseAddrPort(args[1])
	if err != nil {
		return err
	}
	var own []netip.Addr
	for word := range strings.SplitSeq(args[2], ",") {
		a, err := netip.ParseAddr(word)
		if err != nil {
			return err
		}
		own = append(own, a)
	}
	if err := allowFiles(n); err != nil {
		return err
	}
	to := &unix.SockaddrInet4{Port: int(server.Port()), Addr: server.Addr().As4()}
	for i := range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		// The port is chosen on connect, so that it need only be unique there.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return os.NewSyscallError("setsockopt IP_BIND_ADDRESS_NO_PORT", err)
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: own[i%len(own)].As4()}); err != nil {
			return os.NewSyscallError("bind", err)
		}
		if err := unix.Connect(fd, to); err != nil {
			return os.NewSyscallError("connect", err)
		}
	}
	return ready()
}
