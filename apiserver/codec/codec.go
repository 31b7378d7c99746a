// Package codec turns objects into bytes and back: the stored form, and the
// formats in which requests arrive.
package codec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
	jsonserializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/api/kind"
)

// Media types of the API.
const (
	JSON     = "application/json"
	YAML     = "application/yaml"
	Protobuf = "application/vnd.kubernetes.protobuf"
)

// Message is an object that has a protobuf form.
type Message interface {
	runtime.Object
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
	Reset()
	Unmarshal([]byte) error
}

// EncodeStored returns the bytes under which obj is stored: protobuf in the
// envelope, or JSON for kinds without protobuf.
func EncodeStored(k *kind.Kind, obj kind.Object) ([]byte, error) {
	m, ok := obj.(Message)
	if !ok {
		var v any = obj
		if u, ok := obj.(*unstructured.Unstructured); ok {
			v = u.Object // spares a second pass over what its own encoder makes
		}
		b, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("encode %s %s: %w", k.Kind, obj.GetName(), err)
		}
		return b, nil
	}
	b, _, err := seal(k.GVK(), m)
	if err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", k.Kind, obj.GetName(), err)
	}
	return b, nil
}

// DecodeStored reads what EncodeStored wrote, and fills defaults that newer
// servers added since.
func DecodeStored(k *kind.Kind, value []byte) (kind.Object, error) {
	obj := k.New()
	if rest, ok := bytes.CutPrefix(value, protoPrefix); ok {
		m, ok := obj.(Message)
		if !ok {
			return nil, fmt.Errorf("decode a %s: stored as protobuf, which the kind does not have", k.Kind)
		}
		raw, ok := bare(k.GVK(), value)
		if !ok {
			var u runtime.Unknown
			if err := u.Unmarshal(rest); err != nil {
				return nil, fmt.Errorf("decode the envelope of a %s: %w", k.Kind, err)
			}
			raw = u.Raw
		}
		if err := m.Unmarshal(raw); err != nil {
			return nil, fmt.Errorf("decode a %s: %w", k.Kind, err)
		}
	} else if err := json.Unmarshal(value, obj); err != nil {
		return nil, fmt.Errorf("decode a %s: %w", k.Kind, err)
	}
	SetType(obj, k.GVK())
	if k.Default != nil {
		k.Default(obj)
	}
	return obj, nil
}

// SetType stamps the kind's name onto an object.
func SetType(obj runtime.Object, gvk schema.GroupVersionKind) {
	obj.GetObjectKind().SetGroupVersionKind(gvk)
}

// Serializers of request bodies, lenient and strict.
var (
	jsonLenient = serializer(false, false)
	jsonStrict  = serializer(false, true)
	yamlLenient = serializer(true, false)
	yamlStrict  = serializer(true, true)
	proto       = protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
)

func serializer(yaml, strict bool) runtime.Decoder {
	return jsonserializer.NewSerializerWithOptions(jsonserializer.DefaultMetaFactory, scheme.Scheme, scheme.Scheme,
		jsonserializer.SerializerOptions{Yaml: yaml, Strict: strict})
}

// MediaType returns the format of a request body from its Content-Type; JSON if
// there is none. ok is false for a format that is not understood.
func MediaType(contentType string) (media string, ok bool) {
	if contentType == "" {
		return JSON, true
	}
	m, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return contentType, false
	}
	switch m {
	case JSON, Protobuf, CBOR:
		return m, true
	case YAML, "application/x-yaml", "text/yaml":
		return YAML, true
	}
	return m, false
}

// Decode reads a body into into, a registered type or metav1.Status and its
// like. gvk is what the body is if it does not say. strict returns unknown and
// duplicate fields as a runtime.StrictDecodingError together with the object.
func Decode(body []byte, media string, gvk schema.GroupVersionKind, into runtime.Object, strict bool) (runtime.Object, *schema.GroupVersionKind, error) {
	if media == CBOR && !scheme.Scheme.Recognizes(gvk) {
		// The library reads registered types alone.
		var err error
		if body, err = CBORToJSON(body); err != nil {
			return nil, nil, err
		}
		media = JSON
	}
	var d runtime.Decoder
	switch {
	case media == Protobuf:
		if m, ok := into.(Message); ok {
			if raw, ok := bare(gvk, body); ok {
				m.Reset()
				if err := m.Unmarshal(raw); err != nil {
					return nil, &gvk, err
				}
				SetType(m, gvk)
				return m, &gvk, nil
			}
		}
		d = proto
	case media == CBOR && strict:
		d = cborStrict
	case media == CBOR:
		d = cborLenient
	case media == YAML && strict:
		d = yamlStrict
	case media == YAML:
		d = yamlLenient
	case strict:
		d = jsonStrict
	default:
		d = jsonLenient
	}
	return d.Decode(body, &gvk, into)
}

// IsList tells whether obj is a list.
func IsList(obj runtime.Object) bool {
	_, ok := obj.(metav1.ListInterface)
	return ok
}

// DecodeOptions reads the options that stand in a request's body. They come as of
// the group and version of what they are about, which may be one that only a
// custom resource definition knows.
func DecodeOptions(body []byte, media string, gvk schema.GroupVersionKind, into *metav1.DeleteOptions) error {
	if scheme.Scheme.Recognizes(gvk) {
		_, _, err := Decode(body, media, gvk, into, false)
		return err
	}
	if media == CBOR {
		return direct.Unmarshal(body, into)
	}
	if media != Protobuf {
		return yaml.Unmarshal(body, into) // JSON is YAML
	}
	rest, ok := bytes.CutPrefix(body, protoPrefix)
	if !ok {
		return fmt.Errorf("the body does not begin as Kubernetes' protobuf does")
	}
	var u runtime.Unknown
	if err := u.Unmarshal(rest); err != nil {
		return err
	}
	return into.Unmarshal(u.Raw)
}
