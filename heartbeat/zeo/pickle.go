package zeo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
)

// pickle is the protocol Z5: pickle protocol 3 (PEP 3154 tells its opcodes;
// Lib/pickletools.py describes each).
type pickle struct{}

// call writes the very bytes of ZEO's own client.
func (pickle) call(id int64, method string, args ...any) []byte {
	b := []byte{0x80, 3, '('}
	switch {
	case id < 1<<8:
		b = append(b, 'K', byte(id))
	case id < 1<<16:
		b = append(b, 'M')
		b = binary.LittleEndian.AppendUint16(b, uint16(id))
	default:
		b = append(b, 'J')
		b = binary.LittleEndian.AppendUint32(b, uint32(id))
	}
	b = append(b, 0x89) // it wants an answer
	b = appendPickledString(b, method)
	for _, arg := range args {
		switch v := arg.(type) {
		case string:
			b = appendPickledString(b, v)
		case bool:
			if v {
				b = append(b, 0x88)
			} else {
				b = append(b, 0x89)
			}
		}
	}
	b = append(b, [...]byte{')', 0x85, 0x86, 0x87}[len(args)]) // the tuple of so many
	return append(b, 't', '.')
}

func appendPickledString(b []byte, s string) []byte {
	b = append(b, 'X')
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

func (pickle) head(message []byte) (head, error) {
	m := machine{in: message, until: 4} // the mark and three parts
	if _, err := m.run(); err != nil {
		return head{}, err
	}
	if len(m.stack) < 4 || m.stack[0] != (mark{}) {
		return head{}, errors.New("message is no tuple of four")
	}
	return headOf(m.stack[1:4])
}

// headOf names the first three parts of a message.
func headOf(parts []any) (h head, err error) {
	h.id, h.hasID = parts[0].(int64)
	switch flag := parts[1].(type) {
	case int64:
		h.flag = flag
	case bool:
	default:
		return h, fmt.Errorf("message has the flag %v, want a number or a truth value", flag)
	}
	var ok bool
	if h.method, ok = parts[2].(string); !ok {
		return h, fmt.Errorf("message has the method %v, want a name", parts[2])
	}
	return h, nil
}

func (pickle) tuple(message []byte) ([]any, error) {
	m := machine{in: message}
	value, err := m.run()
	if err != nil {
		return nil, err
	}
	parts, ok := value.([]any)
	if !ok {
		return nil, errors.New("message is no tuple")
	}
	return parts, nil
}

// machine runs a pickle's opcodes: those that make plain values. What they make
// is bounded by keep: each takes a byte at least, and nothing is made twice.
type machine struct {
	in    []byte
	stack []any
	until int // stop with so many values on the stack, 0 for at the end
}

// mark is what a MARK leaves on the stack.
type mark struct{}

func (m *machine) run() (any, error) {
	for {
		if m.until > 0 && len(m.stack) >= m.until {
			return nil, nil
		}
		op, err := m.take(1)
		if err != nil {
			return nil, err
		}
		if op[0] == '.' {
			if len(m.stack) != 1 || m.stack[0] == (mark{}) {
				return nil, errors.New("pickle ends with other than one value")
			}
			return m.stack[0], nil
		}
		if err := m.step(op[0]); err != nil {
			return nil, err
		}
	}
}

func (m *machine) step(op byte) error {
	switch op {
	case 0x80: // PROTO
		v, err := m.take(1)
		if err == nil && (v[0] < 2 || v[0] > 3) {
			err = fmt.Errorf("pickle protocol %d, known are 2 and 3", v[0])
		}
		return err
	case '(':
		m.push(mark{})
	case 'N':
		m.push(nil)
	case 0x88:
		m.push(true)
	case 0x89:
		m.push(false)
	case 'K', 'M', 'J', 0x8a, 'G':
		return m.number(op)
	case 'X', 'C', 'B', 'U', 'T':
		return m.text(op)
	case ')', ']':
		m.push([]any{})
	case '}':
		m.push(map[string]any{})
	case 0x85, 0x86, 0x87: // TUPLE1 to TUPLE3
		parts, err := m.pop(int(op - 0x84))
		if err != nil {
			return err
		}
		m.push(parts)
	case 't':
		parts, err := m.popMark()
		if err != nil {
			return err
		}
		m.push(parts)
	case 'a', 'e', 's', 'u':
		return m.fill(op)
	default:
		return fmt.Errorf("pickle has the opcode 0x%02x, which makes no plain value", op)
	}
	return nil
}

// number reads BININT1, BININT2, BININT, LONG1 and BINFLOAT.
func (m *machine) number(op byte) error {
	size := map[byte]int{'K': 1, 'M': 2, 'J': 4, 0x8a: 1, 'G': 8}[op]
	b, err := m.take(size)
	if err != nil {
		return err
	}
	switch op {
	case 'K':
		m.push(int64(b[0]))
	case 'M':
		m.push(int64(binary.LittleEndian.Uint16(b)))
	case 'J':
		m.push(int64(int32(binary.LittleEndian.Uint32(b))))
	case 'G':
		m.push(math.Float64frombits(binary.BigEndian.Uint64(b)))
	case 0x8a: // two's complement, little-endian, of any length
		if b, err = m.take(int(b[0])); err != nil {
			return err
		}
		if len(b) > 8 {
			return errors.New("pickle has a number of more than 64 bits")
		}
		var n int64
		for i, c := range b {
			n |= int64(c) << (8 * i)
		}
		if len(b) > 0 && b[len(b)-1]&0x80 != 0 && len(b) < 8 {
			n -= 1 << (8 * len(b))
		}
		m.push(n)
	}
	return nil
}

// text reads BINUNICODE, the two of bytes, and the two of Python 2's strings.
func (m *machine) text(op byte) error {
	size := 4
	if op == 'C' || op == 'U' {
		size = 1
	}
	b, err := m.take(size)
	if err != nil {
		return err
	}
	n := uint32(b[0])
	if size == 4 {
		n = binary.LittleEndian.Uint32(b)
	}
	if b, err = m.take(int(min(n, math.MaxInt32))); err != nil {
		return err
	}
	if op == 'X' || op == 'U' || op == 'T' {
		m.push(string(b))
	} else {
		m.push(append([]byte(nil), b...))
	}
	return nil
}

// fill puts values into the list or dictionary below them: APPEND, APPENDS,
// SETITEM and SETITEMS.
func (m *machine) fill(op byte) (err error) {
	var values []any
	switch op {
	case 'a':
		values, err = m.pop(1)
	case 's':
		values, err = m.pop(2)
	default:
		values, err = m.popMark()
	}
	if err != nil {
		return err
	}
	if len(m.stack) == 0 {
		return errors.New("pickle fills nothing")
	}
	top := len(m.stack) - 1
	switch into := m.stack[top].(type) {
	case []any:
		if op == 'a' || op == 'e' {
			m.stack[top] = append(into, values...)
			return nil
		}
	case map[string]any:
		if (op == 's' || op == 'u') && len(values)%2 == 0 {
			for i := 0; i < len(values); i += 2 {
				key, ok := values[i].(string)
				if !ok {
					return fmt.Errorf("pickle has a dictionary with a %T for a key", values[i])
				}
				into[key] = values[i+1]
			}
			return nil
		}
	}
	return errors.New("pickle fills what is neither list nor dictionary")
}

func (m *machine) push(v any) { m.stack = append(m.stack, v) }

// take reads n bytes of the pickle.
func (m *machine) take(n int) ([]byte, error) {
	if n > len(m.in) {
		return nil, errors.New("pickle ends in the middle")
	}
	b := m.in[:n]
	m.in = m.in[n:]
	return b, nil
}

// pop takes n values off the stack.
func (m *machine) pop(n int) ([]any, error) {
	at := len(m.stack) - n
	if at < 0 {
		return nil, errors.New("pickle takes more than there is")
	}
	values := append([]any{}, m.stack[at:]...)
	for _, v := range values {
		if v == (mark{}) {
			return nil, errors.New("pickle takes a mark for a value")
		}
	}
	m.stack = m.stack[:at]
	return values, nil
}

// popMark takes what is above the last mark, and the mark.
func (m *machine) popMark() ([]any, error) {
	for at, v := range slices.Backward(m.stack) {
		if v == (mark{}) {
			values := append([]any{}, m.stack[at+1:]...)
			m.stack = m.stack[:at]
			return values, nil
		}
	}
	return nil, errors.New("pickle has no mark where one is needed")
}
