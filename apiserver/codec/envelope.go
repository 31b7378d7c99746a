package codec

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// protoPrefix begins every protobuf body and stored value of Kubernetes; a
// runtime.Unknown follows, the envelope. It is its TypeMeta (field 1), Raw (2),
// contentEncoding (3) and contentType (4); the latter two are written even if empty.
var (
	protoPrefix = []byte{'k', '8', 's', 0}
	envelopeEnd = []byte{3<<3 | 2, 0, 4<<3 | 2, 0}
)

// usualOpening is about as many bytes as come before a message.
const usualOpening = 128

// appendOpening adds what comes before the length of the message.
func appendOpening(b []byte, gvk schema.GroupVersionKind) []byte {
	var small [usualOpening]byte
	meta := appendText(appendText(small[:0], 1<<3|2, gvk.GroupVersion().String()), 2<<3|2, gvk.Kind)
	b = append(append(b, protoPrefix...), 1<<3|2)
	b = append(binary.AppendUvarint(b, uint64(len(meta))), meta...)
	return append(b, 2<<3|2)
}

func appendText(b []byte, tag byte, s string) []byte {
	return append(binary.AppendUvarint(append(b, tag), uint64(len(s))), s...)
}

// EnvelopeAround returns what comes before and after a message of size bytes.
func EnvelopeAround(gvk schema.GroupVersionKind, size int) (open, end []byte) {
	return binary.AppendUvarint(appendOpening(nil, gvk), uint64(size)), envelopeEnd
}

// Seal returns an object's protobuf message in the envelope of its kind, and where
// in there the bare message is.
func Seal(m Message) (whole, bare []byte, err error) {
	return seal(m.GetObjectKind().GroupVersionKind(), m)
}

func seal(gvk schema.GroupVersionKind, m Message) (whole, bare []byte, err error) {
	size := m.Size()
	var small [usualOpening]byte
	open := binary.AppendUvarint(appendOpening(small[:0], gvk), uint64(size))
	end := len(open) + size
	whole = make([]byte, end+len(envelopeEnd))
	copy(whole, open)
	copy(whole[end:], envelopeEnd)
	bare = whole[len(open):end:end]
	if n, err := m.MarshalToSizedBuffer(bare); err != nil || n != size {
		return nil, nil, fmt.Errorf("%d of %d bytes: %w", n, size, err)
	}
	return whole, bare, nil
}

// bare returns the message in an envelope as Seal makes it for gvk, and as other
// encoders do; ok is false for those that look different.
func bare(gvk schema.GroupVersionKind, whole []byte) (message []byte, ok bool) {
	var small [usualOpening]byte
	rest, ok := bytes.CutPrefix(whole, appendOpening(small[:0], gvk))
	if !ok {
		return nil, false
	}
	size, n := binary.Uvarint(rest)
	if n <= 0 || size != uint64(len(rest)-n-len(envelopeEnd)) {
		return nil, false
	}
	return bytes.CutSuffix(rest[n:], envelopeEnd)
}
