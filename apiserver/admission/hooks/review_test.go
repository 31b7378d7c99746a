package hooks

import (
	"testing"

	"k8s.io/apimachinery/pkg/types"
)

// FuzzDecode: whatever a webhook answers is either understood or an error; and
// what is understood fits together.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"u","allowed":true}}`,
		`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"u","allowed":true,"patchType":"JSONPatch","patch":"W10="}}`,
		`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"u","patch":"W10="}}`,
		`{"apiVersion":"admission.k8s.io/v1","kind":"Pod","response":{}}`,
		`{"response":{"status":{"code":-1}}}`, `null`, `[]`, `{"response":null}`, ``,
	} {
		f.Add("v1", []byte(s), true)
		f.Add("v1beta1", []byte(s), false)
	}
	f.Fuzz(func(t *testing.T, version string, body []byte, patches bool) {
		if version != "v1" && version != "v1beta1" {
			return
		}
		r, err := decode(version, types.UID("u"), body, patches)
		if err != nil {
			return
		}
		if r == nil {
			t.Fatal("neither an answer nor an error")
		}
		if version == "v1" && r.UID != "u" || len(r.Patch) > 0 && (!patches || r.PatchType == nil) {
			t.Errorf("accepted %+v", r)
		}
		if st := denied(&hook{name: "h"}, r.Result).Error(); st == "" {
			t.Error("a refusal without words")
		}
	})
}
