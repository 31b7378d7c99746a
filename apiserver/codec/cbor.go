package codec

import (
	"bytes"
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
	"k8s.io/client-go/kubernetes/scheme"
)

// Media types of CBOR: one object, and the objects of a watch one after another.
// See https://kubernetes.io/docs/reference/using-api/api-concepts/#cbor-encoding
// and RFC 8949, RFC 8742.
const (
	CBOR         = "application/cbor"
	CBORSequence = "application/cbor-seq"
)

// cborMagic begins every CBOR document of Kubernetes: the tag that says of itself
// that CBOR follows.
var cborMagic = []byte{0xd9, 0xd9, 0xf7}

var (
	cborLenient = cbor.NewSerializer(scheme.Scheme, scheme.Scheme)
	cborStrict  = cbor.NewSerializer(scheme.Scheme, scheme.Scheme, cbor.Strict(true))
)

// EncodeCBOR returns an object's CBOR.
func EncodeCBOR(obj runtime.Object) ([]byte, error) {
	var b bytes.Buffer
	if err := cborLenient.EncodeNondeterministic(obj, &b); err != nil {
		return nil, fmt.Errorf("encode a %s as CBOR: %w", obj.GetObjectKind().GroupVersionKind().Kind, err)
	}
	return b.Bytes(), nil
}

// CBORToJSON returns the JSON of a CBOR document: of kinds without a Go type, and
// of patches, whose further way is that of JSON.
func CBORToJSON(data []byte) ([]byte, error) {
	var v any
	if err := direct.Unmarshal(data, &v); err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

// OpenCBORList returns how a list begins: the documents of its items follow, and
// nothing after them. meta is the list's metadata as CBOR.
func OpenCBORList(kind, apiVersion string, meta []byte, items int) []byte {
	out := append(bytes.Clone(cborMagic), cborHead(cborMapType, 4)...)
	out = cborText(cborText(out, "kind"), kind)
	out = cborText(cborText(out, "apiVersion"), apiVersion)
	out = append(cborText(out, "metadata"), meta...)
	return append(cborText(out, "items"), cborHead(cborArrayType, items)...)
}

// CBOREvent returns an event of a watch around an object's document.
func CBOREvent(eventType string, object []byte) []byte {
	out := append(make([]byte, 0, len(object)+40), cborMagic...)
	out = append(out, cborHead(cborMapType, 2)...)
	out = cborText(cborText(out, "type"), eventType)
	return append(cborText(out, "object"), object...)
}

// MarshalCBOR returns the CBOR of a value that is no object.
func MarshalCBOR(v any) ([]byte, error) { return direct.Marshal(v) }

// Major types of RFC 8949.
const (
	cborTextType  = 3
	cborArrayType = 4
	cborMapType   = 5
)

// cborHead is the head of a data item: its major type and a count.
func cborHead(major byte, n int) []byte {
	major <<= 5
	switch {
	case n < 24:
		return []byte{major | byte(n)}
	case n < 1<<8:
		return []byte{major | 24, byte(n)}
	case n < 1<<16:
		return []byte{major | 25, byte(n >> 8), byte(n)}
	}
	return []byte{major | 26, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

func cborText(to []byte, s string) []byte {
	return append(append(to, cborHead(cborTextType, len(s))...), s...)
}
