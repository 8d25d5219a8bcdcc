package procfd

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
)

// parseCgroup picks the path out of /proc/PID/cgroup (cgroups(7)): that of
// cgroup v2, unless it is "/" and systemd keeps its own hierarchy of v1.
func parseCgroup(data []byte) string {
	var unified, systemd string
	for line := range bytes.SplitSeq(data, []byte("\n")) {
		fields := bytes.SplitN(line, []byte(":"), 3)
		if len(fields) < 3 || len(fields[2]) == 0 || fields[2][0] != '/' {
			continue
		}
		switch {
		case string(fields[0]) == "0" && len(fields[1]) == 0:
			unified = string(fields[2])
		case string(fields[1]) == "name=systemd":
			systemd = string(fields[2])
		}
	}
	if systemd != "" && (unified == "" || unified == "/") {
		return systemd
	}
	return unified
}

// unitOf names the systemd unit of a cgroup path, "" when there is none. As
// systemd itself does (cg_path_get_unit, cg_path_get_user_unit), it takes the
// first unit below the slices, and below a user's manager or session the first
// unit in there. What lies deeper is delegated and could call itself anything.
func unitOf(path string) string {
	var unit string
	for part := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		if isUnit(part, ".slice") {
			continue
		}
		if !isUnit(part, ".service", ".scope", ".socket", ".mount", ".swap") {
			break
		}
		if unit != "" {
			return part
		}
		unit = part
		if !strings.HasPrefix(part, "user@") && !strings.HasPrefix(part, "session-") {
			break
		}
	}
	return unit
}

// isUnit reports whether name is a valid unit name (systemd.unit(5)) with one
// of the suffixes.
func isUnit(name string, suffixes ...string) bool {
	return len(name) < 256 &&
		slices.ContainsFunc(suffixes, func(s string) bool { return len(name) > len(s) && strings.HasSuffix(name, s) }) &&
		!strings.ContainsFunc(name, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(`:-_.\@`, r)
		})
}

// containerOf names the innermost container of a cgroup path, "" when there is
// none: the 64 hexadecimal digits of Docker, containerd, CRI-O and Podman, the
// name of an LXC container or of a systemd machine.
func containerOf(path string) string {
	parts := strings.Split(path, "/")
	for i, part := range slices.Backward(parts) {
		name := strings.TrimSuffix(part, ".scope")
		for _, prefix := range []string{"docker-", "cri-containerd-", "crio-", "libpod-", "nerdctl-"} {
			name = strings.TrimPrefix(name, prefix)
		}
		// Without systemd's help containerd writes slice:cri-containerd:ID.
		name = name[strings.LastIndexByte(name, ':')+1:]
		if isContainerID(name) {
			return name
		}
		if name, ok := strings.CutPrefix(part, "lxc.payload."); ok && name != "" {
			return name
		}
		if i > 0 && parts[i-1] == "machine.slice" {
			if name, ok := machine(part); ok {
				return name
			}
		}
	}
	return ""
}

func isContainerID(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && len(s) == 64
}

// machine reads the name out of machine-NAME.scope (systemd-machined, libvirt)
// and systemd-nspawn@NAME.service, which hold it escaped.
func machine(unit string) (string, bool) {
	name, ok := strings.CutSuffix(unit, ".scope")
	if ok {
		name, ok = strings.CutPrefix(name, "machine-")
	} else if name, ok = strings.CutSuffix(unit, ".service"); ok {
		name, ok = strings.CutPrefix(name, "systemd-nspawn@")
	}
	return unescape(name), ok && name != ""
}

// unescape undoes the \xNN of systemd-escape(1). A slash cannot be part of a
// machine's name, so "-" stands for itself.
func unescape(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if rest := s[i:]; len(rest) >= 4 && rest[0] == '\\' && rest[1] == 'x' {
			if n, err := strconv.ParseUint(rest[2:4], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
