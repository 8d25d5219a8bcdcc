package host

import (
	"fmt"
	"strings"

	"deadpeer/internal/conn"
)

// Entry explains one parameter of one family of systems.
type Entry struct {
	System  string
	Name    string
	Where   string // where it is set
	Type    string // how it is spelt there
	Default string
	Decides string
	ByHand  string // how to set it without deadpeer
}

// Entries are all parameters known, of today's systems and of Windows 95, 98
// and ME, which older texts still tell of.
func Entries() (list []Entry) {
	add := func(system, where, typ string, byHand func(p Parameter) string, parameters []Parameter) {
		for _, p := range parameters {
			list = append(list, Entry{system, p.Name, where, typ + ", " + unitName(p.Unit), p.Text(p.Default), p.Decides, byHand(p)})
		}
	}
	add("Linux", "/proc/sys/net/ipv4, each network namespace its own; at boot from sysctl.d(5)", "number", func(p Parameter) string {
		return fmt.Sprintf("sysctl -w %s=%d   (a plain hyphen, and no spaces around =)", p.Name, p.Default)
	}, linuxParameters())
	bsd := func(p Parameter) string { return fmt.Sprintf("sysctl %s=%d", p.Name, p.Default) }
	add("FreeBSD", "sysctl(8); at boot from /etc/sysctl.conf", "number", bsd, bsdParameters(1))
	add("macOS", "sysctl(8); newer systems read no /etc/sysctl.conf at boot", "number", bsd, bsdParameters(0))
	add("Windows NT, 2000, XP and later", `HKEY_LOCAL_MACHINE\`+WindowsKey, "REG_DWORD", func(p Parameter) string {
		return fmt.Sprintf(`reg add HKLM\%s /v %s /t REG_DWORD /d %d   (then reboot)`, WindowsKey, p.Name, p.Default)
	}, windowsParameters())
	return append(append(list, Entry{
		"Windows 2000, XP and Server 2003", "DisableDHCPMediaSense", `HKEY_LOCAL_MACHINE\` + WindowsKey, "REG_DWORD, 0 or 1", "0",
		"1: addresses stay when the cable is pulled out for a moment, so that clients on unreliable links keep their connections. Not one of keepalive's.",
		fmt.Sprintf(`reg add HKLM\%s /v DisableDHCPMediaSense /t REG_DWORD /d 1   (then reboot)`, WindowsKey),
	}), windows9x()...)
}

// windows9x are the values of Microsoft's article 158474.
func windows9x() []Entry {
	const system, where = "Windows 95, 98 and ME", `HKEY_LOCAL_MACHINE\System\CurrentControlSet\Services\VxD\MSTCP`
	const byHand = "regedit   (then reboot)"
	return []Entry{
		{system, "KeepAliveTime", where, "DWORD, on Windows 98 STRING, milliseconds", "7200000 ms",
			"Silence after which the first keepalive probe goes out.", byHand},
		{system, "KeepAliveInterval", where, "DWORD, on Windows 98 STRING, milliseconds", "1000 ms",
			"Time between probes.", byHand},
		{system, "MaxDataRetries", where, "STRING, a count", "5",
			"How often data, and a keepalive probe, is repeated. On Windows NT and later it is TcpMaxDataRetransmissions.", byHand},
	}
}

func unitName(u Unit) string {
	switch u {
	case Seconds:
		return "seconds"
	case Milliseconds:
		return "milliseconds"
	case Count:
		return "a count"
	}
	return string(u)
}

// Explain gives the entries of a name, whatever its case, with or without what
// comes before its last part. The error suggests a name that is close.
func Explain(name string) ([]Entry, error) {
	wanted := strings.ToLower(strings.TrimSpace(name))
	var found []Entry
	var names []string
	for _, e := range Entries() {
		full := strings.ToLower(e.Name)
		short := full[strings.LastIndexByte(full, '.')+1:]
		if wanted == full || wanted == short || wanted == strings.TrimPrefix(short, "tcp_") ||
			wanted == strings.ReplaceAll(full, ".", "/") || wanted == "/proc/sys/"+strings.ReplaceAll(full, ".", "/") {
			found = append(found, e)
		}
		names = append(names, full, short)
	}
	if len(found) > 0 {
		return found, nil
	}
	if meant := conn.Nearest(wanted, names); meant != "" {
		return nil, fmt.Errorf("no parameter %q; did you mean %s?", conn.Printable(name), meant)
	}
	return nil, fmt.Errorf("no parameter %q; deadpeer tune explain lists all", conn.Printable(name))
}
