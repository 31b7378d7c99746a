package apiserver

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/codec"
	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/apiserver/watchcache"
)

func (s *Server) writeList(w http.ResponseWriter, r *http.Request, f format, res *registry.Resource, l *registry.List) {
	meta := metav1.ListMeta{ResourceVersion: strconv.FormatInt(l.Revision, 10), Continue: l.Continue, RemainingItemCount: l.Remaining}
	switch f.as {
	case "Table":
		t, err := s.table(res, l.Items, r)
		if err != nil {
			writeError(w, r, err)
			return
		}
		t.ListMeta = meta
		writeObject(w, r, http.StatusOK, f, t)
		return
	case "PartialObjectMetadata", "PartialObjectMetadataList":
		p := &metav1.PartialObjectMetadataList{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadataList"}, ListMeta: meta}
		p.Items = make([]metav1.PartialObjectMetadata, len(l.Items))
		for i, it := range l.Items {
			p.Items[i] = *partial(it.Object)
		}
		writeObject(w, r, http.StatusOK, f, p)
		return
	}
	if f.media == codec.CBOR {
		parts, err := cborList(res, l.Items, &meta)
		if err != nil {
			writeError(w, r, err)
			return
		}
		writeBody(w, r, http.StatusOK, codec.CBOR, parts...)
		return
	}
	if f.media == codec.Protobuf {
		parts, err := protoList(res, l.Items, &meta)
		if err != nil {
			writeError(w, r, err)
			return
		}
		if parts != nil {
			writeBody(w, r, http.StatusOK, codec.Protobuf, parts...)
			return
		}
		f.media = codec.JSON
	}
	parts, err := jsonList(res, l.Items, &meta)
	if err != nil {
		writeError(w, r, err)
		return
	}
	if f.media == codec.YAML || pretty(r) {
		writeJSON(w, r, http.StatusOK, f, bytes.Join(parts, nil))
		return
	}
	writeBody(w, r, http.StatusOK, codec.JSON, append(parts, newline)...)
}

// jsonList lines up the objects' shared bytes.
func jsonList(res *registry.Resource, items []*watchcache.Item, meta *metav1.ListMeta) ([][]byte, error) {
	head, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	parts := make([][]byte, 0, 2*len(items)+3)
	parts = append(parts, fmt.Appendf(nil, `{"kind":%q,"apiVersion":"%s","metadata":%s,"items":[`, res.ListKind, res.GVK().GroupVersion(), head))
	for i, it := range items {
		b, err := itemJSON(res, it)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			parts = append(parts, comma)
		}
		parts = append(parts, b)
	}
	return append(parts, listEnd), nil
}

var comma, listEnd = []byte{','}, []byte("]}")

// viewed is an object as its resource shows it: with the shared encodings, or for
// views one of its own.
func viewed(res *registry.Resource, it *watchcache.Item) (*watchcache.Item, error) {
	if !res.IsView() {
		return it, nil
	}
	v, err := res.View(it.Object)
	if err != nil {
		return nil, err
	}
	return &watchcache.Item{Object: v}, nil
}

func itemJSON(res *registry.Resource, it *watchcache.Item) ([]byte, error) {
	it, err := viewed(res, it)
	if err != nil {
		return nil, err
	}
	return it.JSON()
}

// protoList lines up the objects' shared messages: every Kubernetes list message
// has its metadata as field 1 and its items as field 2. nil if the kind has no
// protobuf.
func protoList(res *registry.Resource, items []*watchcache.Item, meta *metav1.ListMeta) ([][]byte, error) {
	if _, ok := res.New().(codec.Message); !ok {
		return nil, nil
	}
	head, err := meta.Marshal()
	if err != nil {
		return nil, err
	}
	tags := appendTag(make([]byte, 0, 6*len(items)+16), 1, len(head))
	parts := make([][]byte, 1, 2*len(items)+3) // the envelope comes first
	parts = append(parts, tags, head)
	size := len(tags) + len(head)
	for _, it := range items {
		it, err := viewed(res, it)
		if err != nil {
			return nil, err
		}
		b, err := it.Protobuf()
		if err != nil {
			return nil, err
		}
		begin := len(tags)
		tags = appendTag(tags, 2, len(b))
		tag := tags[begin:len(tags):len(tags)]
		parts = append(parts, tag, b)
		size += len(tag) + len(b)
	}
	gvk := res.GVK()
	gvk.Kind += "List"
	open, end := codec.EnvelopeAround(gvk, size)
	parts[0] = open
	return append(parts, end), nil
}

// cborList lines up the objects' CBOR.
func cborList(res *registry.Resource, items []*watchcache.Item, meta *metav1.ListMeta) ([][]byte, error) {
	head, err := codec.MarshalCBOR(meta)
	if err != nil {
		return nil, err
	}
	parts := make([][]byte, 1, len(items)+1)
	parts[0] = codec.OpenCBORList(res.ListKind, res.GVK().GroupVersion().String(), head, len(items))
	for _, it := range items {
		b, err := itemCBOR(res, it)
		if err != nil {
			return nil, err
		}
		parts = append(parts, b)
	}
	return parts, nil
}

// itemCBOR encodes anew each time: clients of CBOR are few.
func itemCBOR(res *registry.Resource, it *watchcache.Item) ([]byte, error) {
	v, err := res.View(it.Object)
	if err != nil {
		return nil, err
	}
	return codec.EncodeCBOR(v)
}

// appendTag begins a length-delimited field.
func appendTag(b []byte, number byte, size int) []byte {
	b = append(b, number<<3|2)
	return binary.AppendUvarint(b, uint64(size))
}

// table prints objects as kubectl get shows them.
func (s *Server) table(res *registry.Resource, items []*watchcache.Item, r *http.Request) (*metav1.Table, error) {
	cols, row := res.Columns, res.Row
	if res.IsView() && row == nil {
		if hub := res.Stored(); hub.Row != nil {
			cols, row = hub.Columns, hub.Row
		}
	}
	if row == nil {
		cols, row = defaultColumns, func(o kind.Object, now time.Time) []any { return []any{o.GetName(), age(o, now)} }
	}
	t := &metav1.Table{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "Table"}, ColumnDefinitions: cols, Rows: make([]metav1.TableRow, len(items))}
	now := s.now()
	include := metav1.IncludeObjectPolicy(r.URL.Query().Get("includeObject"))
	for i, it := range items {
		t.Rows[i].Cells = row(it.Object, now)
		switch include {
		case metav1.IncludeNone:
		case metav1.IncludeObject:
			b, err := itemJSON(res, it)
			if err != nil {
				return nil, err
			}
			t.Rows[i].Object = runtime.RawExtension{Raw: b}
		case "", metav1.IncludeMetadata:
			t.Rows[i].Object = runtime.RawExtension{Object: partial(it.Object)}
		default:
			return nil, apierrors.NewBadRequest(fmt.Sprintf("includeObject: unsupported value %q: use None, Metadata or Object", include))
		}
	}
	return t, nil
}

var defaultColumns = []metav1.TableColumnDefinition{
	{Name: "Name", Type: "string", Format: "name", Description: metav1.ObjectMeta{}.SwaggerDoc()["name"]},
	{Name: "Age", Type: "string", Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"]},
}

func age(o kind.Object, now time.Time) string {
	t := o.GetCreationTimestamp()
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(t.Time))
}
