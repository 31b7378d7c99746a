package codec

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// library returns what Kubernetes' own encoder makes of an object.
func library(t *testing.T, m Message) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := proto.Encode(m, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func messages() []Message {
	var all []Message
	for _, size := range []int{0, 1, 60, 127, 128, 129, 16384, 70000} {
		c := &corev1.ConfigMap{Data: map[string]string{"k": strings.Repeat("x", size)}}
		SetType(c, corev1.SchemeGroupVersion.WithKind("ConfigMap"))
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: strings.Repeat("n", size)}}
		SetType(d, appsv1.SchemeGroupVersion.WithKind("Deployment"))
		all = append(all, c, d)
	}
	return all
}

func TestSealIsTheLibrarys(t *testing.T) {
	for _, m := range messages() {
		want := library(t, m)
		got, message, err := Seal(m)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%T: %v: %x, want %x", m, err, got[:min(60, len(got))], want[:min(60, len(want))])
		}
		open, end := EnvelopeAround(m.GetObjectKind().GroupVersionKind(), len(message))
		if around := bytes.Join([][]byte{open, message, end}, nil); !bytes.Equal(around, want) {
			t.Errorf("%T: around the message: %x, want %x", m, around[:min(60, len(around))], want[:min(60, len(want))])
		}
	}
}

// TestDecodeProtobuf reads what the library writes, and envelopes that no encoder
// writes but the format permits: of an object without a kind, with a content type,
// with the message first.
func TestDecodeProtobuf(t *testing.T) {
	gvk := corev1.SchemeGroupVersion.WithKind("ConfigMap")
	m := &corev1.ConfigMap{Data: map[string]string{"k": "v"}}
	raw, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	message := append(binary.AppendUvarint([]byte{2<<3 | 2}, uint64(len(raw))), raw...)
	meta := appendText(appendText(nil, 1<<3|2, "v1"), 2<<3|2, "ConfigMap")
	header := append(binary.AppendUvarint([]byte{1<<3 | 2}, uint64(len(meta))), meta...)
	for name, body := range map[string][]byte{
		"usual":         bytes.Join([][]byte{protoPrefix, header, message, envelopeEnd}, nil),
		"no end":        bytes.Join([][]byte{protoPrefix, header, message}, nil),
		"no kind":       bytes.Join([][]byte{protoPrefix, message}, nil),
		"content type":  bytes.Join([][]byte{protoPrefix, header, message, {3<<3 | 2, 0}, appendText(nil, 4<<3|2, "application/x")}, nil),
		"message first": bytes.Join([][]byte{protoPrefix, message, header}, nil),
	} {
		into := &corev1.ConfigMap{Data: map[string]string{"old": "gone"}}
		out, actual, err := Decode(body, Protobuf, gvk, into, true)
		if err != nil || out != runtime.Object(into) || *actual != gvk || len(into.Data) != 1 || into.Data["k"] != "v" || into.Kind != "ConfigMap" {
			t.Errorf("%s: %v, %v, %+v", name, err, actual, into)
		}
	}
	other := bytes.Join([][]byte{protoPrefix, header, message, envelopeEnd}, nil)
	if _, actual, _ := Decode(other, Protobuf, corev1.SchemeGroupVersion.WithKind("Secret"), &corev1.Secret{}, true); actual.Kind != "ConfigMap" {
		t.Errorf("a ConfigMap sent as a Secret: %v", actual)
	}
}

// FuzzBare holds what is taken for an envelope against the library.
func FuzzBare(f *testing.F) {
	for _, m := range messages()[:6] {
		whole, _, err := Seal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add("", "v1", "ConfigMap", whole)
		f.Add("apps", "v1", "Deployment", whole)
		f.Add("apps", "v1", "Deployment", whole[:len(whole)-1])
	}
	f.Fuzz(func(t *testing.T, group, version, kind string, whole []byte) {
		gvk := schema.GroupVersionKind{Group: group, Version: version, Kind: kind}
		message, ok := bare(gvk, whole)
		if !ok {
			return
		}
		var u runtime.Unknown
		if err := u.Unmarshal(whole[len(protoPrefix):]); err != nil {
			t.Fatalf("the library refuses it: %v", err)
		}
		if !bytes.Equal(u.Raw, message) || u.Kind != kind || u.APIVersion != gvk.GroupVersion().String() {
			t.Errorf("%+v, taken for %x of %s", u, message, gvk)
		}
	})
}
