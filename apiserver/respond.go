package apiserver

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/codec"
	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/apiserver/watchcache"
)

var noResource = schema.GroupResource{}

// gzipAbove is the size in bytes from which answers are compressed for clients
// that accept it; below, compressing costs more than it saves.
const gzipAbove = 128 << 10

// writeBody sends an encoded answer, given in parts so that shared bytes need no copy.
func writeBody(w http.ResponseWriter, r *http.Request, code int, media string, parts ...[]byte) {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	h := w.Header()
	h.Set("Content-Type", media)
	h.Set("Cache-Control", "no-cache, private")
	if size > gzipAbove && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		h.Set("Vary", "Accept-Encoding")
		w.WriteHeader(code)
		z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
		if err != nil {
			return
		}
		if writeParts(z, parts) == nil {
			_ = z.Close() // the client has gone: nobody is left to tell
		}
		return
	}
	h.Set("Content-Length", strconv.Itoa(size))
	w.WriteHeader(code)
	if r.Method == http.MethodHead {
		return
	}
	if len(parts) > 2 {
		b := bufio.NewWriterSize(w, 64<<10) // few large frames instead of many small ones
		if writeParts(b, parts) == nil {
			_ = b.Flush()
		}
		return
	}
	_ = writeParts(w, parts)
}

func writeParts(w io.Writer, parts [][]byte) error {
	for _, p := range parts {
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

var newline = []byte{'\n'}

// writeError sends an error as a Status.
func writeError(w http.ResponseWriter, r *http.Request, err error) {
	status := statusOf(err)
	if rec, ok := w.(*recorder); ok && rec.audited != nil {
		rec.audited.status = status
	}
	if status.Details != nil && status.Details.RetryAfterSeconds > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(status.Details.RetryAfterSeconds)))
	}
	body, err := json.Marshal(status)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeBody(w, r, int(status.Code), codec.JSON, append(body, '\n'))
}

func statusOf(err error) *metav1.Status {
	var s apierrors.APIStatus
	if !errors.As(err, &s) {
		s = apierrors.NewInternalError(err)
	}
	status := s.Status()
	status.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
	return &status
}

// writeObject sends any object in the wanted format.
func writeObject(w http.ResponseWriter, r *http.Request, code int, f format, obj runtime.Object) {
	if f.media == codec.Protobuf {
		if m, ok := obj.(codec.Message); ok {
			b, _, err := codec.Seal(m)
			if err != nil {
				writeError(w, r, err)
				return
			}
			writeBody(w, r, code, codec.Protobuf, b)
			return
		}
		f.media = codec.JSON
	}
	if f.media == codec.CBOR {
		b, err := codec.EncodeCBOR(obj)
		if err != nil {
			writeError(w, r, err)
			return
		}
		writeBody(w, r, code, codec.CBOR, b)
		return
	}
	b, err := watchcache.EncodeJSON(obj)
	if err != nil {
		writeError(w, r, err)
		return
	}
	writeJSON(w, r, code, f, b)
}

// writeJSON sends JSON as it is or as YAML.
func writeJSON(w http.ResponseWriter, r *http.Request, code int, f format, b []byte) {
	if f.media == codec.YAML {
		y, err := yaml.JSONToYAML(b)
		if err != nil {
			writeError(w, r, err)
			return
		}
		writeBody(w, r, code, codec.YAML, y)
		return
	}
	if pretty(r) {
		var buf bytes.Buffer
		if json.Indent(&buf, b, "", "  ") == nil {
			b = buf.Bytes()
		}
	}
	writeBody(w, r, code, codec.JSON, b, newline)
}

// pretty tells whether a person reads the answer: asked for, or the client is one
// that people type into.
func pretty(r *http.Request) bool {
	if strings.Contains(r.URL.RawQuery, "pretty") {
		if v, ok := r.URL.Query()["pretty"]; ok {
			return v[0] == "" || isTrue(v[0])
		}
	}
	agent := r.UserAgent()
	return strings.HasPrefix(agent, "curl") || strings.HasPrefix(agent, "Wget") || strings.HasPrefix(agent, "Mozilla/5.0")
}

// writeItem sends a stored object, from its shared bytes where it can.
func (s *Server) writeItem(w http.ResponseWriter, r *http.Request, code int, f format, res *registry.Resource, it *watchcache.Item) {
	switch {
	case f.as == "Table":
		t, err := s.table(res, []*watchcache.Item{it}, r)
		if err != nil {
			writeError(w, r, err)
			return
		}
		t.ResourceVersion = it.Object.GetResourceVersion()
		writeObject(w, r, code, f, t)
	case f.as == "PartialObjectMetadata":
		writeObject(w, r, code, f, partial(it.Object))
	case f.as != "":
		writeError(w, r, apierrors.NewGenericServerResponse(http.StatusNotAcceptable, "", noResource, "", fmt.Sprintf("a single object cannot be shown as %s", f.as), 0, false))
	case res.IsView():
		v, err := res.View(it.Object)
		if err != nil {
			writeError(w, r, err)
			return
		}
		writeObject(w, r, code, f, v)
	case f.media == codec.CBOR:
		writeObject(w, r, code, f, it.Object)
	case f.media == codec.Protobuf:
		b, err := it.Sealed()
		if err != nil {
			writeError(w, r, err)
			return
		}
		if b == nil {
			f.media = codec.JSON
			s.writeItem(w, r, code, f, res, it)
			return
		}
		writeBody(w, r, code, codec.Protobuf, b)
	default:
		b, err := it.JSON()
		if err != nil {
			writeError(w, r, err)
			return
		}
		writeJSON(w, r, code, f, b)
	}
}

func partial(obj kind.Object) *metav1.PartialObjectMetadata {
	p := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"}}
	p.ObjectMeta = *objectMeta(obj)
	return p
}

func objectMeta(obj kind.Object) *metav1.ObjectMeta {
	if a, ok := obj.(metav1.ObjectMetaAccessor); ok {
		if m, ok := a.GetObjectMeta().(*metav1.ObjectMeta); ok {
			return m
		}
	}
	created := obj.GetCreationTimestamp()
	return &metav1.ObjectMeta{
		Name: obj.GetName(), GenerateName: obj.GetGenerateName(), Namespace: obj.GetNamespace(), UID: obj.GetUID(),
		ResourceVersion: obj.GetResourceVersion(), Generation: obj.GetGeneration(), CreationTimestamp: created,
		DeletionTimestamp: obj.GetDeletionTimestamp(), DeletionGracePeriodSeconds: obj.GetDeletionGracePeriodSeconds(),
		Labels: obj.GetLabels(), Annotations: obj.GetAnnotations(), OwnerReferences: obj.GetOwnerReferences(),
		Finalizers: obj.GetFinalizers(), ManagedFields: obj.GetManagedFields(),
	}
}
