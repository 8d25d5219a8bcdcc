package conn

import (
	"math"
	"net/netip"
	"path"
	"strconv"
	"strings"
)

// compare reads the operator and value of a field.
func (p *parser) compare(word token, f field) (node, error) {
	o, err := p.operator(word, f.ordered())
	if err != nil {
		return nil, err
	}
	if f == fieldMark && o <= opNE && p.pos < len(p.tokens) && strings.Contains(p.peek().text, "/") {
		return p.markValue(word, o)
	}
	var n node
	if fields[f].kind == valueGlob {
		v, err := p.value(word, "a name or pattern")
		if err != nil {
			return nil, err
		}
		if _, err := path.Match(v.text, ""); err != nil {
			return nil, p.errorAt(v.column, "%s: bad pattern %.40q, want * ? [a-z] [^a-z] and \\ before what stands for itself", word.keyword, v.text)
		}
		n = globPred{f, v.text}
	} else {
		test := o
		if o == opNE {
			test = opEQ
		}
		v, family, err := p.number(word, f)
		if err != nil {
			return nil, err
		}
		pred := numPred{field: f, op: test, value: v}
		if given := p.tokens[p.pos-1].text; f == fieldCgroup {
			if _, isID := parseNumber(given, 64); !isID {
				pred.name = given
			}
		}
		n = pred
		if family.IsValid() {
			if p.depth+2 > maxNesting { // String needs as many more
				return nil, p.errorAt(word.column, "nested deeper than %d", maxNesting)
			}
			n = newAnd([]node{hostPred{f == fieldDport, family, -1}, n})
		}
	}
	if o == opNE {
		return newNot(n), nil
	}
	return n, nil
}

// number reads the value of a field that is compared as a number. A port may
// come with a family (ss: dport = inet6:443), given as its whole prefix.
func (p *parser) number(word token, f field) (n uint64, family netip.Prefix, err error) {
	want := map[valueKind]string{
		valueNumber: "a number", valuePort: "a port such as :5432", valueDev: "an interface",
		valueCgroup: "a path or id", valueDuration: "a duration such as 10m", valueName: strings.Join(valueNames(f), " or "),
	}[fields[f].kind]
	v, err := p.value(word, want)
	if err != nil {
		return 0, family, err
	}
	var ok bool
	switch fields[f].kind {
	case valueDuration:
		d, err := ParseDuration(v.text)
		if err != nil || d < 0 {
			return 0, family, p.errorAt(v.column, "%s: %.40q is not a duration (10s, 5m, 2h, 1d or 1w)", word.keyword, v.text)
		}
		return uint64(d), family, nil
	case valueName:
		for _, name := range valueNames(f) {
			if name == v.keyword {
				return valueByName(f, name), family, nil
			}
		}
		return 0, family, p.unknown(v, word.keyword, valueNames(f), valueNames(f))
	case valuePort:
		text, fam := cutFamily(v.text)
		port, e := p.port(v, strings.TrimPrefix(text, ":"))
		return uint64(port), fam, e
	case valueDev:
		if n, ok = parseNumber(v.text, 32); !ok && p.resolver.Interface != nil {
			var index uint32
			index, ok = p.resolver.Interface(v.text)
			n = uint64(index)
		}
		if !ok {
			return 0, family, p.errorAt(v.column, "dev: no interface %.40q here", v.text)
		}
	case valueCgroup:
		if n, ok = parseNumber(v.text, 64); !ok && p.resolver.Cgroup != nil {
			n, ok = p.resolver.Cgroup(v.text)
		}
		if !ok {
			return 0, family, p.errorAt(v.column, "cgroup: no cgroup %.80q here, want a cgroup v2 path or id", v.text)
		}
	default:
		if n, ok = parseNumber(v.text, fields[f].bits); !ok {
			return 0, family, p.errorAt(v.column, "%s: %.40q is not a number from 0 to %d", word.keyword, v.text, uint64(math.MaxUint64)>>(64-fields[f].bits))
		}
	}
	return n, family, nil
}

func (p *parser) port(v token, text string) (uint16, error) {
	if n, ok := parseNumber(text, 16); ok {
		return uint16(n), nil
	}
	if p.resolver.Port != nil {
		if n, ok := p.resolver.Port(text); ok {
			return n, nil
		}
	}
	if p.resolver.Port == nil || text == "" || '0' <= text[0] && text[0] <= '9' {
		return 0, p.errorAt(v.column, "%.40q is not a port from 0 to 65535", text)
	}
	return 0, p.errorAt(v.column, "%.40q is neither a port from 0 to 65535 nor a service known here", text)
}

// fwmark reads N or N/mask.
func (p *parser) fwmark(word token) (node, error) {
	o, err := p.operator(word, false)
	if err != nil {
		return nil, err
	}
	return p.markValue(word, o)
}

func (p *parser) markValue(word token, o op) (node, error) {
	v, err := p.value(word, "a mark such as 0x10 or 0x10/0xf0")
	if err != nil {
		return nil, err
	}
	value, mask, masked := strings.Cut(v.text, "/")
	n, ok := parseNumber(value, 32)
	m, maskOK := uint64(math.MaxUint32), true
	if masked {
		m, maskOK = parseNumber(mask, 32)
	}
	if !ok || !maskOK {
		return nil, p.errorAt(v.column, "%s: %.40q is not a mark such as 0x10 or 0x10/0xf0", word.keyword, v.text)
	}
	var pred node = numPred{field: fieldMark, op: opEQ, value: n}
	if m != math.MaxUint32 {
		pred = markPred{uint32(n), uint32(m)}
	}
	if o == opNE {
		return newNot(pred), nil
	}
	return pred, nil
}

// host reads [FAMILY:]ADDRESS[/len][:PORT] of src and dst.
func (p *parser) host(word token) (node, error) {
	o, err := p.operator(word, false)
	if err != nil {
		return nil, err
	}
	v, err := p.value(word, "an address such as 10.0.0.0/8, [::1]:443 or :5432")
	if err != nil {
		return nil, err
	}
	text, family := cutFamily(v.text)
	pred := hostPred{peer: word.keyword == "dst", prefix: family, port: -1}
	addr, port, bad := splitHost(text)
	if bad {
		return nil, p.errorAt(v.column, "%s: no ] for the [", word.keyword)
	}
	if port != "" && port != "*" {
		n, err := p.port(v, port)
		if err != nil {
			return nil, err
		}
		pred.port = int32(n)
	}
	if addr != "" && addr != "*" {
		prefix, ok := parsePrefix(addr)
		if !ok {
			return nil, p.errorAt(v.column, "%s: %.60q is not an address such as 10.0.0.1, 10.0.0.0/8, [::1]:443 or :5432 (names are not resolved)", word.keyword, addr)
		}
		if family.IsValid() && family.Addr().Is4() != prefix.Addr().Is4() {
			return nil, p.errorAt(v.column, "%s: %s is not of that family", word.keyword, addr)
		}
		pred.prefix = prefix
	}
	if o == opNE {
		return newNot(pred), nil
	}
	return pred, nil
}

// cutFamily takes "inet:" or "inet6:" off a host or port.
func cutFamily(s string) (rest string, family netip.Prefix) {
	if rest, ok := strings.CutPrefix(s, "inet:"); ok {
		return rest, netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	if rest, ok := strings.CutPrefix(s, "inet6:"); ok {
		return rest, netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return s, netip.Prefix{}
}

// splitHost parts address and port; an IPv6 address with a port stands in
// brackets, with its length inside or after them.
func splitHost(s string) (addr, port string, bad bool) {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		addr, rest, ok := strings.Cut(inner, "]")
		if !ok {
			return "", "", true
		}
		length, port, _ := strings.Cut(rest, ":")
		return addr + length, port, false
	}
	from := max(0, strings.IndexByte(s, '/'))
	if from == 0 && strings.Count(s, ":") > 1 {
		return s, "", false
	}
	if i := strings.LastIndexByte(s[from:], ':'); i >= 0 {
		return s[:from+i], s[from+i+1:], false
	}
	return s, "", false
}

// parsePrefix reads an address with or without a length; IPv4 networks may
// leave out trailing zeros (10/8), as in ss.
func parsePrefix(s string) (netip.Prefix, bool) {
	addr, length, hasLength := strings.Cut(s, "/")
	if hasLength && !strings.Contains(addr, ":") {
		for dots := strings.Count(addr, "."); dots < 3; dots++ {
			addr += ".0"
		}
	}
	a, err := netip.ParseAddr(addr)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, false
	}
	bits := uint64(a.BitLen())
	if hasLength {
		n, ok := parseNumber(length, 8)
		if !ok || n > bits {
			return netip.Prefix{}, false
		}
		bits = n
	}
	return netip.PrefixFrom(a, int(bits)).Masked(), true
}

// parseNumber reads decimal digits, or hexadecimal ones after 0x.
func parseNumber(s string, bits int) (uint64, bool) {
	base := 10
	if hex, ok := strings.CutPrefix(strings.ToLower(s), "0x"); ok {
		s, base = hex, 16
	}
	n, err := strconv.ParseUint(s, base, bits)
	return n, err == nil
}
