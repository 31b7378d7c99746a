package audit

import (
	"encoding/json"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"knarr.dev/knarr/apiserver/auth"
)

// Backend takes events. Write must not block for long; the event must not be
// changed.
type Backend interface{ Write(*auditv1.Event) }

// Auditor follows requests as a policy demands.
type Auditor struct {
	Policy   *auditv1.Policy
	Backends []Backend
	Now      func() time.Time

	events atomic.Int64
}

// Events counts the events written so far.
func (a *Auditor) Events() int64 { return a.events.Load() }

// Trail is one request on its way. All methods may be called on nil, which is a
// request that the policy does not want.
type Trail struct {
	a       *Auditor
	verdict verdict

	mu    sync.Mutex
	event auditv1.Event
}

// maxID is how long an audit ID that a client gives may be.
const maxID = 64

// Begin looks up what the policy wants to know of a request, and reports that it
// was received. nil: nothing.
func (a *Auditor) Begin(r *http.Request, user *authenticationv1.UserInfo, act *auth.Action) *Trail {
	v := judge(a.Policy, user, act)
	if v.level == auditv1.LevelNone {
		return nil
	}
	id := types.UID(r.Header.Get(auditv1.HeaderAuditID))
	if id == "" || len(id) > maxID {
		id = uuid.NewUUID()
	}
	now := metav1.NewMicroTime(a.Now())
	t := &Trail{a: a, verdict: v, event: auditv1.Event{
		TypeMeta: metav1.TypeMeta{APIVersion: auditv1.SchemeGroupVersion.String(), Kind: "Event"},
		Level:    v.level, AuditID: id, RequestURI: r.URL.RequestURI(), Verb: act.Verb, User: *user,
		SourceIPs: sources(r), UserAgent: r.UserAgent(), RequestReceivedTimestamp: now,
	}}
	if act.IsResource() {
		t.event.ObjectRef = &auditv1.ObjectReference{Resource: act.Resource, Namespace: act.Namespace, Name: act.Name,
			APIGroup: act.Group, APIVersion: act.Version, Subresource: act.Subresource}
	}
	t.emit(auditv1.StageRequestReceived)
	return t
}

// sources lists where a request comes from: as proxies say, and then who called.
func sources(r *http.Request) []string {
	var out []string
	add := func(text string) {
		if ip := net.ParseIP(strings.TrimSpace(text)); ip != nil && !slices.Contains(out, ip.String()) {
			out = append(out, ip.String())
		}
	}
	for _, part := range strings.Split(r.Header.Get("X-Forwarded-For"), ",") {
		add(part)
	}
	add(r.Header.Get("X-Real-Ip"))
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		add(host)
	}
	return out
}

// ID is the request's audit ID; empty for nil.
func (t *Trail) ID() string {
	if t == nil {
		return ""
	}
	return string(t.event.AuditID)
}

// WantsRequest and WantsResponse tell whether bodies are wanted.
func (t *Trail) WantsRequest() bool {
	return t != nil && (t.verdict.level == auditv1.LevelRequest || t.verdict.level == auditv1.LevelRequestResponse)
}

// WantsResponse tells whether the answer's body is wanted.
func (t *Trail) WantsResponse() bool {
	return t != nil && t.verdict.level == auditv1.LevelRequestResponse
}

// Annotate adds an annotation; the first of a key stays.
func (t *Trail) Annotate(key, value string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.event.Annotations == nil {
		t.event.Annotations = map[string]string{}
	}
	if _, ok := t.event.Annotations[key]; !ok {
		t.event.Annotations[key] = value
	}
}

// Impersonate notes as whom the user acts.
func (t *Trail) Impersonate(user *authenticationv1.UserInfo) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.event.ImpersonatedUser = user
}

// Started reports that the answer of a request that lasts has begun.
func (t *Trail) Started(code int) {
	if t == nil {
		return
	}
	t.mu.Lock()
	t.event.ResponseStatus = &metav1.Status{Code: int32(code)}
	t.mu.Unlock()
	t.emit(auditv1.StageResponseStarted)
}

// End is how a request ended.
type End struct {
	Code int
	// Status is what an error answered; nil: there was none.
	Status *metav1.Status
	// Request and Response are the bodies, as JSON; nil: they are not wanted.
	Request, Response []byte
	// Panicked: the server met a defect.
	Panicked bool
}

// Complete reports the end.
func (t *Trail) Complete(e End) {
	if t == nil {
		return
	}
	t.mu.Lock()
	t.event.ResponseStatus = &metav1.Status{Code: int32(e.Code)}
	if s := e.Status; s != nil {
		t.event.ResponseStatus.Status, t.event.ResponseStatus.Message, t.event.ResponseStatus.Reason, t.event.ResponseStatus.Details = s.Status, s.Message, s.Reason, s.Details
	}
	t.event.RequestObject, t.event.ResponseObject = t.object(e.Request), t.object(e.Response)
	t.mu.Unlock()
	if e.Panicked {
		t.emit(auditv1.StagePanic)
		return
	}
	t.emit(auditv1.StageResponseComplete)
}

func (t *Trail) object(b []byte) *runtime.Unknown {
	if len(b) == 0 || !json.Valid(b) {
		return nil
	}
	if t.verdict.omitManagedFields {
		b = withoutManagedFields(b)
	}
	return &runtime.Unknown{Raw: b, ContentType: runtime.ContentTypeJSON}
}

// withoutManagedFields drops the records of ownership from an object or a list.
func withoutManagedFields(b []byte) []byte {
	var obj map[string]any
	if json.Unmarshal(b, &obj) != nil {
		return b // a list of patches
	}
	strip := func(o any) {
		if m, ok := o.(map[string]any); ok {
			if meta, ok := m["metadata"].(map[string]any); ok {
				delete(meta, "managedFields")
			}
		}
	}
	strip(obj)
	if items, ok := obj["items"].([]any); ok {
		for _, i := range items {
			strip(i)
		}
	}
	out, err := json.Marshal(obj)
	if err != nil {
		return b
	}
	return out
}

// emit writes the event as it is now.
func (t *Trail) emit(stage auditv1.Stage) {
	if slices.Contains(t.verdict.omit, stage) {
		return
	}
	t.mu.Lock()
	t.event.Stage, t.event.StageTimestamp = stage, metav1.NewMicroTime(t.a.Now())
	ev := t.event.DeepCopy()
	t.mu.Unlock()
	t.a.events.Add(1)
	for _, b := range t.a.Backends {
		b.Write(ev)
	}
}
