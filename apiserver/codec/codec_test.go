package codec

import (
	"bytes"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestEnvelopeAroundIsEnvelope(t *testing.T) {
	for _, size := range []int{0, 1, 127, 128, 70000} {
		gvk := schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "DeploymentList"}
		raw := bytes.Repeat([]byte{7}, size)
		want, err := Envelope(gvk, raw)
		if err != nil {
			t.Fatal(err)
		}
		open, end, err := EnvelopeAround(gvk, size)
		if err != nil {
			t.Fatal(err)
		}
		if got := append(append(open, raw...), end...); size > 0 && !bytes.Equal(got, want) {
			t.Errorf("size %d: %x, want %x", size, got[:min(40, len(got))], want[:min(40, len(want))])
		}
	}
}
