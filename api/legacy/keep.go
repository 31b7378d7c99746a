package legacy

import (
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What an old version has no field for travels in an annotation of the view, as
// JSON, so that a client of the old version that reads and writes loses nothing.
// It is never stored.

func save(meta *metav1.ObjectMeta, key string, v any) {
	if b, err := json.Marshal(v); err == nil {
		metav1.SetMetaDataAnnotation(meta, key, string(b))
	}
}

// restore reads what save wrote into the value that into returns.
func restore(meta *metav1.ObjectMeta, key string, into func() any) {
	text, ok := meta.Annotations[key]
	if !ok {
		return
	}
	delete(meta.Annotations, key)
	_ = json.Unmarshal([]byte(text), into()) // a client's own text decides nothing
}
