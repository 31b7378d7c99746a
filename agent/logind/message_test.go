package logind

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Types of messages and codes of header fields of the D-Bus wire protocol:
// https://dbus.freedesktop.org/doc/dbus-specification.html#message-protocol.
const (
	typeCall   = 1
	typeReturn = 2
	typeError  = 3
	typeSignal = 4

	fieldPath        = 1
	fieldInterface   = 2
	fieldMember      = 3
	fieldErrorName   = 4
	fieldReplySerial = 5
	fieldDestination = 6
	fieldSignature   = 8
	fieldFDs         = 9

	// maxMessage is the longest message that is read, in bytes; what logind sends is
	// far shorter.
	maxMessage = 1 << 20
)

var (
	errShort   = errors.New("a message of the bus is cut off")
	errForeign = errors.New("what comes from the bus is no message of its protocol")
)

// message is one message, with the header fields that matter here.
type message struct {
	kind                    byte
	serial, reply           uint32
	path, iface, member     string
	destination, err, types string
	body                    []byte
}

// writer builds little-endian values, each at its alignment.
type writer struct{ b []byte }

func (w *writer) align(n int) {
	for len(w.b)%n != 0 {
		w.b = append(w.b, 0)
	}
}
func (w *writer) u32(v uint32) { w.align(4); w.b = binary.LittleEndian.AppendUint32(w.b, v) }
func (w *writer) str(s string) { w.u32(uint32(len(s))); w.b = append(append(w.b, s...), 0) }
func (w *writer) sig(s string) { w.b = append(append(append(w.b, byte(len(s))), s...), 0) }

// encode writes a message; its body is strings alone, or an unsigned number.
func (m *message) encode() []byte {
	var fields writer
	field := func(code byte, kind, v string) {
		if v == "" {
			return
		}
		fields.align(8)
		fields.b = append(fields.b, code)
		fields.sig(kind)
		if kind == "g" {
			fields.sig(v)
		} else {
			fields.str(v)
		}
	}
	field(fieldPath, "o", m.path)
	field(fieldInterface, "s", m.iface)
	field(fieldMember, "s", m.member)
	field(fieldErrorName, "s", m.err)
	field(fieldDestination, "s", m.destination)
	field(fieldSignature, "g", m.types)
	number := func(code byte, v uint32) {
		if v == 0 {
			return
		}
		fields.align(8)
		fields.b = append(fields.b, code)
		fields.sig("u")
		fields.u32(v)
	}
	number(fieldReplySerial, m.reply)
	if m.types == "h" {
		number(fieldFDs, 1)
	}
	w := writer{b: []byte{'l', m.kind, 0, 1}}
	w.u32(uint32(len(m.body)))
	w.u32(m.serial)
	w.u32(uint32(len(fields.b)))
	w.b = append(w.b, fields.b...)
	w.align(8)
	return append(w.b, m.body...)
}

// reader reads values in either order of bytes.
type reader struct {
	b     []byte
	off   int
	order binary.ByteOrder
	bad   bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n < 0 || n > len(r.b)-r.off {
		r.bad = true
		return nil
	}
	r.off += n
	return r.b[r.off-n : r.off]
}

func (r *reader) align(n int) { r.take((n - r.off%n) % n) }

func (r *reader) u32() uint32 {
	r.align(4)
	if b := r.take(4); b != nil {
		return r.order.Uint32(b)
	}
	return 0
}

func (r *reader) str() string {
	s := string(r.take(int(r.u32())))
	r.take(1)
	return s
}

func (r *reader) sig() string {
	n := r.take(1)
	if n == nil {
		return ""
	}
	s := string(r.take(int(n[0])))
	r.take(1)
	return s
}

// length tells from its first 16 bytes how long a message is.
func length(head []byte) (int, error) {
	if order(head) == nil {
		return 0, errForeign
	}
	r := reader{b: head, off: 4, order: order(head)}
	body, _, fields := r.u32(), r.u32(), r.u32()
	if r.bad || body > maxMessage || fields > maxMessage {
		return 0, errForeign
	}
	return (16+int(fields)+7)/8*8 + int(body), nil
}

func order(head []byte) binary.ByteOrder {
	if len(head) == 0 {
		return nil
	}
	switch head[0] {
	case 'l':
		return binary.LittleEndian
	case 'B':
		return binary.BigEndian
	}
	return nil
}

// decode reads a whole message.
func decode(b []byte) (*message, error) {
	n, err := length(b[:min(len(b), 16)])
	if err != nil || n != len(b) {
		return nil, errors.Join(err, errShort)
	}
	m := &message{kind: b[1]}
	r := reader{b: b, off: 8, order: order(b)}
	m.serial = r.u32()
	end := int(r.u32()) + 16
	for r.off < end && !r.bad {
		r.align(8)
		code := r.take(1)
		kind := r.sig()
		if r.bad {
			break
		}
		switch kind {
		case "u":
			if v := r.u32(); code[0] == fieldReplySerial {
				m.reply = v
			}
		case "g":
			if v := r.sig(); code[0] == fieldSignature {
				m.types = v
			}
		case "s", "o":
			v := r.str()
			switch code[0] {
			case fieldPath:
				m.path = v
			case fieldInterface:
				m.iface = v
			case fieldMember:
				m.member = v
			case fieldErrorName:
				m.err = v
			}
		default:
			return nil, fmt.Errorf("a header field of type %q is not known", kind)
		}
	}
	r.align(8)
	if r.bad {
		return nil, errShort
	}
	m.body = b[r.off:]
	return m, nil
}

// values reads the body.
func (m *message) values() *reader { return &reader{b: m.body, order: binary.LittleEndian} }
