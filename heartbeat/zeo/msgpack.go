package zeo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// msgpack is the protocol M5 (github.com/msgpack/msgpack, spec.md).
type msgpack struct{}

func (msgpack) call(id int64, method string, args ...any) []byte {
	b := []byte{0x94}
	switch {
	case id < 0x80:
		b = append(b, byte(id))
	default:
		b = append(b, 0xce)
		b = binary.BigEndian.AppendUint32(b, uint32(id))
	}
	b = append(b, 0xc2) // it wants an answer
	b = appendPackedString(b, method)
	b = append(b, 0x90|byte(len(args)))
	for _, arg := range args {
		switch v := arg.(type) {
		case string:
			b = appendPackedString(b, v)
		case bool:
			if v {
				b = append(b, 0xc3)
			} else {
				b = append(b, 0xc2)
			}
		}
	}
	return b
}

func appendPackedString(b []byte, s string) []byte {
	if len(s) < 32 {
		b = append(b, 0xa0|byte(len(s)))
	} else {
		b = append(b, 0xdb)
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	}
	return append(b, s...)
}

func (msgpack) head(message []byte) (head, error) {
	u := unpacker{in: message}
	if b, err := u.take(1); err != nil || b[0] != 0x94 {
		return head{}, errors.New("message is no array of four")
	}
	var parts [3]any
	for i := range parts {
		v, err := u.value(0)
		if err != nil {
			return head{}, err
		}
		parts[i] = v
	}
	return headOf(parts[:])
}

func (msgpack) tuple(message []byte) ([]any, error) {
	u := unpacker{in: message}
	value, err := u.value(0)
	if err != nil {
		return nil, err
	}
	parts, ok := value.([]any)
	if !ok {
		return nil, errors.New("message is no array")
	}
	if len(u.in) > 0 {
		return nil, errors.New("message goes on after its end")
	}
	return parts, nil
}

// unpacker reads values.
type unpacker struct{ in []byte }

// maxDepth bounds arrays in arrays.
const maxDepth = 32

func (u *unpacker) value(depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("message is nested more than %d deep", maxDepth)
	}
	b, err := u.take(1)
	if err != nil {
		return nil, err
	}
	switch c := b[0]; {
	case c < 0x80:
		return int64(c), nil
	case c >= 0xe0:
		return int64(int8(c)), nil
	case c < 0x90:
		return u.dictionary(int(c&0x0f), depth)
	case c < 0xa0:
		return u.array(int(c&0x0f), depth)
	case c < 0xc0:
		return u.text(int(c & 0x1f))
	case c == 0xc0:
		return nil, nil
	case c == 0xc2, c == 0xc3:
		return c == 0xc3, nil
	case c == 0xca, c == 0xcb, c >= 0xcc && c <= 0xd3:
		return u.number(c)
	case c >= 0xc4 && c <= 0xc6, c >= 0xd9 && c <= 0xdf:
		return u.sized(c, depth)
	default:
		return nil, fmt.Errorf("message has the type 0x%02x, which is not plain", c)
	}
}

// number reads the floats, uint 8 to 64 and int 8 to 64.
func (u *unpacker) number(c byte) (any, error) {
	switch c {
	case 0xca:
		n, err := u.uint(4)
		return float64(math.Float32frombits(uint32(n))), err
	case 0xcb:
		n, err := u.uint(8)
		return math.Float64frombits(n), err
	}
	signed := c >= 0xd0
	size := 1 << ((c - 0xcc) % 4)
	n, err := u.uint(size)
	if err != nil {
		return nil, err
	}
	if !signed {
		if n > math.MaxInt64 {
			return nil, errors.New("message has a number of more than 63 bits")
		}
		return int64(n), nil
	}
	shift := 64 - 8*size
	return int64(n<<shift) >> shift, nil
}

// sized reads bin, str, array and map with a length of its own.
func (u *unpacker) sized(c byte, depth int) (any, error) {
	size := map[byte]int{0xc4: 1, 0xc5: 2, 0xc6: 4, 0xd9: 1, 0xda: 2, 0xdb: 4, 0xdc: 2, 0xdd: 4, 0xde: 2, 0xdf: 4}[c]
	length, err := u.uint(size)
	if err != nil {
		return nil, err
	}
	if length > uint64(len(u.in)) { // each takes a byte at least
		return nil, errors.New("message ends in the middle")
	}
	n := int(length)
	switch {
	case c <= 0xc6:
		b, err := u.take(n)
		return append([]byte(nil), b...), err
	case c <= 0xdb:
		return u.text(n)
	case c <= 0xdd:
		return u.array(n, depth)
	}
	return u.dictionary(n, depth)
}

func (u *unpacker) text(n int) (any, error) {
	b, err := u.take(n)
	return string(b), err
}

func (u *unpacker) array(n, depth int) (any, error) {
	list := make([]any, 0, min(n, 64))
	for range n {
		v, err := u.value(depth + 1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

func (u *unpacker) dictionary(n, depth int) (any, error) {
	m := make(map[string]any, min(n, 64))
	for range n {
		k, err := u.value(depth + 1)
		if err != nil {
			return nil, err
		}
		key, ok := k.(string)
		if !ok {
			return nil, fmt.Errorf("message has a dictionary with a %T for a key", k)
		}
		if m[key], err = u.value(depth + 1); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (u *unpacker) uint(size int) (n uint64, err error) {
	b, err := u.take(size)
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	return n, err
}

func (u *unpacker) take(n int) ([]byte, error) {
	if n > len(u.in) {
		return nil, errors.New("message ends in the middle")
	}
	b := u.in[:n]
	u.in = u.in[n:]
	return b, nil
}
