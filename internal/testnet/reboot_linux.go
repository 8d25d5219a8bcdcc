package testnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Reboot makes the host forget all its TCP sockets, listeners too, without a
// segment to anyone. Later segments from its peers find nobody and draw RST.
// The programs that had the sockets get ECONNABORTED, or EINVAL from accept.
// Needs CAP_NET_ADMIN and CONFIG_INET_DIAG_DESTROY.
func (h *Host) Reboot() error {
	err := h.Do(func() (err error) {
		c, err := nftables.New(nftables.AsLasting())
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.CloseLasting()) }()
		// tcp_abort() sends RST. Only on the host itself is it certain that
		// none is still queued when the rule goes.
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "reboot"})
		output := c.AddChain(&nftables.Chain{
			Table: table, Name: "output", Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: output,
			Exprs: append(protocol(unix.IPPROTO_TCP), &expr.Verdict{Kind: expr.VerdictDrop})})
		if err := c.Flush(); err != nil {
			return err
		}
		err = destroySockets()
		c.DelTable(table)
		return errors.Join(err, c.Flush())
	})
	if err != nil {
		return fmt.Errorf("reboot host %s: %w", h.name, needCapability(err))
	}
	return nil
}

// destroySockets ends all TCP sockets of the calling thread's namespace by
// sock_diag(7). Aborting a listener frees what waited in its queue, so it
// goes round until nothing is left to end.
func destroySockets() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return fmt.Errorf("open sock_diag socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	const rounds = 20
	for range rounds {
		ended := 0
		for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
			ids, err := dumpSockets(fd, family)
			if err != nil {
				return fmt.Errorf("list sockets: %w", err)
			}
			for _, id := range ids {
				switch err := destroySocket(fd, family, id); {
				case err == nil:
					ended++
				case !errors.Is(err, unix.ENOENT): // ended by itself
					return fmt.Errorf("destroy socket: %w", err)
				}
			}
		}
		if ended == 0 {
			return nil
		}
	}
	return errors.New("destroy sockets: new ones keep coming")
}

// From linux/inet_diag.h and linux/sock_diag.h.
const (
	sockDestroy  = 21 // SOCK_DESTROY
	diagRequest  = 56 // sizeof(struct inet_diag_req_v2)
	diagMessage  = 72 // sizeof(struct inet_diag_msg)
	diagIDLength = 48 // sizeof(struct inet_diag_sockid)
	diagMsgID    = 4  // offsetof(struct inet_diag_msg, id)
	// All states with a socket to end, up to TCP_NEW_SYN_RECV, but TCP_CLOSE.
	diagStates = 0x1ffe &^ (1 << 7)
)

type diagID [diagIDLength]byte // addresses, ports, interface and cookie

func dumpSockets(fd int, family byte) (ids []diagID, err error) {
	err = diagExchange(fd, unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP, family, diagID{}, func(data []byte) {
		if len(data) >= diagMessage {
			ids = append(ids, diagID(data[diagMsgID:diagMsgID+diagIDLength]))
		}
	})
	return ids, err
}

func destroySocket(fd int, family byte, id diagID) error {
	return diagExchange(fd, sockDestroy, unix.NLM_F_ACK, family, id, func([]byte) {})
}

// diagExchange sends one request and reads until its acknowledgement or the
// end of its dump.
func diagExchange(fd int, kind, flags uint16, family byte, id diagID, each func(data []byte)) error {
	const size = unix.NLMSG_HDRLEN + diagRequest
	request := make([]byte, 0, size)
	request = binary.NativeEndian.AppendUint32(request, size)
	request = binary.NativeEndian.AppendUint16(request, kind)
	request = binary.NativeEndian.AppendUint16(request, flags|unix.NLM_F_REQUEST)
	request = append(request, make([]byte, 8)...) // sequence, port: one exchange at a time
	request = append(request, family, unix.IPPROTO_TCP, 0, 0)
	request = binary.NativeEndian.AppendUint32(request, diagStates)
	request = append(request, id[:]...)
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return err
		}
		for _, m := range messages {
			switch m.Header.Type {
			case unix.NLMSG_DONE:
				return nil
			case unix.NLMSG_ERROR:
				if len(m.Data) < 4 {
					return unix.EBADMSG
				}
				if errno := -int32(binary.NativeEndian.Uint32(m.Data)); errno != 0 {
					return syscall.Errno(errno)
				}
				return nil
			default:
				each(m.Data)
			}
		}
	}
}
