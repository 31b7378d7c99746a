package apiserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"knarr.dev/knarr/apiserver/codec"
	"knarr.dev/knarr/apiserver/registry"
	"knarr.dev/knarr/apiserver/watchcache"
)

const (
	// A watch without timeoutSeconds ends after 30 to 60 minutes.
	minWatch = 30 * time.Minute
	// Bookmarks tell idle watchers how far the server has come.
	bookmarkEvery = time.Minute
)

// Slots of watchcache.Event.Frame.
const (
	slotJSON = iota
	slotProto
	slotCBOR
)

// serveWatch streams changes until the client leaves or the time is up.
func (s *Server) serveWatch(w http.ResponseWriter, r *http.Request, q registry.Request, o registry.ListOptions) {
	f, err := negotiate(r, anyTransformation)
	if err != nil {
		writeError(w, r, err)
		return
	}
	query := r.URL.Query()
	initial := isTrue(query.Get("sendInitialEvents"))
	o.NoInitial = query.Has("sendInitialEvents") && !initial
	watch, err := s.reg.Watch(r.Context(), q, o, initial)
	if q.Resource.Custom != nil && f.media == codec.Protobuf {
		f.media = codec.JSON // there is no such form
	}
	e := &eventWriter{s: s, w: w, r: r, f: f, res: q.Resource}
	if apierrors.IsResourceExpired(err) { // an event, not an answer, as in Kubernetes
		e.start()
		e.fail(err)
		e.send()
		return
	}
	if err != nil {
		writeError(w, r, err)
		return
	}
	defer watch.Stop()
	e.start()
	timeout := minWatch + rand.N(minWatch)
	if v, err := strconv.Atoi(query.Get("timeoutSeconds")); err == nil && v > 0 {
		timeout = time.Duration(v) * time.Second
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	stop := context.AfterFunc(s.stopping, cancel)
	defer stop()
	e.run(ctx, watch, isTrue(query.Get("allowWatchBookmarks")), initial)
}

// eventWriter frames events for one client.
type eventWriter struct {
	s   *Server
	w   http.ResponseWriter
	r   *http.Request
	f   format
	res *registry.Resource
	buf []byte
}

func (e *eventWriter) start() {
	if e.f.media == codec.YAML || e.f.media == codec.Protobuf && e.f.as != "" {
		e.f.media = codec.JSON
	}
	media := e.f.media
	switch media {
	case codec.Protobuf:
		media += ";stream=watch"
	case codec.CBOR:
		media = codec.CBORSequence
	}
	e.w.Header().Set("Content-Type", media)
	e.w.Header().Set("Cache-Control", "no-cache, private")
	e.w.WriteHeader(http.StatusOK)
	e.flush()
}

func (e *eventWriter) flush() {
	if fl, ok := e.w.(http.Flusher); ok {
		fl.Flush()
	}
}

func (e *eventWriter) run(ctx context.Context, watch *registry.Watch, bookmarks, initial bool) {
	for _, it := range watch.Initial {
		if e.add(watchcache.Added, it) != nil {
			return
		}
	}
	if initial && bookmarks {
		e.bookmark(watch.InitialRevision, true)
	}
	if !e.send() {
		return
	}
	var tick <-chan time.Time
	if bookmarks {
		t := time.NewTicker(bookmarkEvery)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
			e.bookmark(watch.Progress(), false)
		case <-watch.Ready():
			events, err := watch.Poll()
			if errors.Is(err, watchcache.ErrEnded) {
				return
			}
			if err != nil {
				e.fail(apierrors.NewResourceExpired(err.Error()))
				e.send()
				return
			}
			for _, ev := range events {
				if t, ok := watch.Select(ev); ok {
					if err := e.event(ctx, t, ev); err != nil {
						e.fail(err)
						e.send()
						return
					}
				}
			}
		}
		if !e.send() {
			return
		}
	}
}

// send writes what has been gathered; false if the client has gone.
func (e *eventWriter) send() bool {
	if len(e.buf) == 0 {
		return true
	}
	_, err := e.w.Write(e.buf)
	e.buf = e.buf[:0]
	if err != nil {
		return false
	}
	e.flush()
	return true
}

// event adds a change: its shared frame where the client sees it as it is.
func (e *eventWriter) event(ctx context.Context, t watchcache.EventType, ev *watchcache.Event) error {
	it := ev.Item
	if t == watchcache.Deleted && ev.Type != watchcache.Deleted {
		// The object left the selection: show its last selected state, with the
		// revision of the change.
		it = watchcache.Stamped(it.Key, ev.Prev.Object, ev.Revision)
	}
	shown, err := e.res.Items(ctx, []*watchcache.Item{it})
	if err != nil {
		return err
	}
	if t == ev.Type && e.f.as == "" && !e.res.IsView() && shown[0] == ev.Item {
		slot, encode := e.frame()
		b, err := ev.Frame(slot, func(ev *watchcache.Event) ([]byte, error) { return encode(e.res, ev.Type, ev.Item.Apart()) })
		if err != nil {
			return err
		}
		e.buf = append(e.buf, b...)
		return nil
	}
	return e.add(t, shown[0])
}

func (e *eventWriter) add(t watchcache.EventType, it *watchcache.Item) error {
	if e.f.as == "" {
		_, encode := e.frame()
		b, err := encode(e.res, t, it)
		e.buf = append(e.buf, b...)
		return err
	}
	var obj runtime.Object = partial(it.Object)
	if e.f.as == "Table" {
		table, err := e.s.table(e.res, []*watchcache.Item{it}, e.r)
		if err != nil {
			return err
		}
		table.ResourceVersion = it.Object.GetResourceVersion()
		obj = table
	}
	if e.f.media == codec.CBOR {
		b, err := codec.EncodeCBOR(obj)
		if err != nil {
			return err
		}
		e.buf = append(e.buf, codec.CBOREvent(string(t), b)...)
		return nil
	}
	b, err := watchcache.EncodeJSON(obj)
	if err != nil {
		return err
	}
	e.buf = appendJSONFrame(e.buf, t, b)
	return nil
}

type frame func(res *registry.Resource, t watchcache.EventType, it *watchcache.Item) ([]byte, error)

// frame is how events are encoded for this client, and the slot that keeps them
// for others.
func (e *eventWriter) frame() (slot int, encode frame) {
	switch e.f.media {
	case codec.Protobuf:
		return slotProto, protoFrame
	case codec.CBOR:
		return slotCBOR, cborFrame
	}
	return slotJSON, jsonFrame
}

func cborFrame(res *registry.Resource, t watchcache.EventType, it *watchcache.Item) ([]byte, error) {
	b, err := itemCBOR(res, it)
	if err != nil {
		return nil, err
	}
	return codec.CBOREvent(string(t), b), nil
}

func appendJSONFrame(buf []byte, t watchcache.EventType, object []byte) []byte {
	buf = fmt.Appendf(buf, `{"type":%q,"object":`, t)
	buf = append(buf, object...)
	return append(buf, "}\n"...)
}

func jsonFrame(res *registry.Resource, t watchcache.EventType, it *watchcache.Item) ([]byte, error) {
	b, err := itemJSON(res, it)
	if err != nil {
		return nil, err
	}
	return appendJSONFrame(make([]byte, 0, len(b)+40), t, b), nil
}

// protoFrame is a length-prefixed metav1.WatchEvent whose object is an
// enveloped message.
func protoFrame(res *registry.Resource, t watchcache.EventType, it *watchcache.Item) ([]byte, error) {
	it, err := viewed(res, it)
	if err != nil {
		return nil, err
	}
	b, err := it.Sealed()
	if err != nil {
		return nil, err
	}
	if b == nil {
		return nil, fmt.Errorf("kind %s has no protobuf form", res.GVK())
	}
	return protoEvent(string(t), b)
}

func protoEvent(t string, object []byte) ([]byte, error) {
	ev := metav1.WatchEvent{Type: t, Object: runtime.RawExtension{Raw: object}}
	n := ev.Size()
	out := make([]byte, 4+n)
	binary.BigEndian.PutUint32(out, uint32(n))
	if _, err := ev.MarshalToSizedBuffer(out[4:]); err != nil {
		return nil, err
	}
	return out, nil
}

// bookmark adds an event that carries only a revision.
func (e *eventWriter) bookmark(revision int64, initialEnd bool) {
	obj := e.res.New()
	codec.SetType(obj, e.res.GVK())
	obj.SetResourceVersion(strconv.FormatInt(revision, 10))
	if initialEnd {
		obj.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	}
	it := &watchcache.Item{Object: obj}
	if e.f.as == "Table" {
		b, err := watchcache.EncodeJSON(&metav1.Table{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "Table"},
			ListMeta: metav1.ListMeta{ResourceVersion: obj.GetResourceVersion()}, ColumnDefinitions: []metav1.TableColumnDefinition{}, Rows: []metav1.TableRow{}})
		if err == nil {
			e.buf = appendJSONFrame(e.buf, "BOOKMARK", b)
		}
		return
	}
	if err := e.add("BOOKMARK", it); err != nil {
		e.s.log.Debug("bookmark not sent", "resource", e.res.Resource, "error", err)
	}
}

// fail adds an ERROR event, after which the watch ends.
func (e *eventWriter) fail(err error) {
	status := statusOf(err)
	if e.f.media == codec.CBOR {
		if b, err := codec.EncodeCBOR(status); err == nil {
			e.buf = append(e.buf, codec.CBOREvent("ERROR", b)...)
		}
		return
	}
	if e.f.media == codec.Protobuf {
		raw, _, err := codec.Seal(status)
		if err == nil {
			raw, err = protoEvent("ERROR", raw)
		}
		if err == nil {
			e.buf = append(e.buf, raw...)
		}
		return
	}
	if b, err := watchcache.EncodeJSON(status); err == nil {
		e.buf = appendJSONFrame(e.buf, "ERROR", b)
	}
}
