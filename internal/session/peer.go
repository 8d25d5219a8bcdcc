package session

import (
	"net/netip"
	"strconv"
	"strings"
)

// parsePeer reads an address and a port with a separator between: "ip:port"
// as MySQL writes it (IPv6 without brackets), "ip/port" as Firebird does
// (::1/44768). The last separator counts. A name instead of the address gives
// a port only. ok is false when there is no port.
func parsePeer(s string, separator byte) (peer netip.AddrPort, ok bool) {
	at := strings.LastIndexByte(s, separator)
	if at < 0 {
		return peer, false
	}
	port, err := strconv.ParseUint(s[at+1:], 10, 16)
	if err != nil || port == 0 {
		return peer, false
	}
	host := strings.TrimSuffix(strings.TrimPrefix(s[:at], "["), "]")
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPortFrom(netip.Addr{}, uint16(port)), true
	}
	return netip.AddrPortFrom(ip.Unmap().WithZone(""), uint16(port)), true
}
