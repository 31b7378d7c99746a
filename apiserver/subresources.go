package apiserver

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	policyv1beta1 "k8s.io/api/policy/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/registry"
)

// serveSubresource answers requests for everything below an object but status.
func (s *Server) serveSubresource(w http.ResponseWriter, r *http.Request, info *requestInfo, q registry.Request) {
	var err error
	switch sub := info.Resource + "/" + info.Subresource; {
	case q.Resource.Scale != nil && info.Subresource == "scale":
		err = s.scale(w, r, info.Verb, q)
	case sub == "deployments/rollback" && hasOther(q.Resource, "rollback"):
		err = s.rollback(w, r, info.Verb, q)
	case info.Group != "":
		notServed(w, r)
	case sub == "pods/binding" && info.Verb == "create":
		err = s.bind(w, r, q)
	case sub == "pods/eviction" && info.Verb == "create":
		err = s.evict(w, r, q)
	case sub == "namespaces/finalize" && info.Verb == "update":
		err = s.finalize(w, r, q)
	case sub == "serviceaccounts/token" && info.Verb == "create":
		err = s.issueToken(w, r, q)
	case sub == "pods/log", sub == "pods/exec", sub == "pods/attach", sub == "pods/portforward":
		if err = s.admitConnect(r, info, q); err == nil {
			err = s.connectPod(w, r, info, q)
		}
	case sub == "pods/proxy", sub == "services/proxy", sub == "nodes/proxy":
		if err = s.admitConnect(r, info, q); err == nil {
			err = s.connectProxy(w, r, info, q)
		}
	case known405[sub]:
		methodNotAllowed(w, r)
	default:
		notServed(w, r)
	}
	if err != nil {
		writeError(w, r, err)
	}
}

// known405 are subresources that exist, but not with every method.
var known405 = map[string]bool{"pods/binding": true, "pods/eviction": true, "namespaces/finalize": true, "serviceaccounts/token": true}

func success(w http.ResponseWriter, r *http.Request, code int) {
	writeObject(w, r, code, format{}, &metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusSuccess, Code: int32(code)})
}

func (s *Server) bind(w http.ResponseWriter, r *http.Request, q registry.Request) error {
	var b corev1.Binding
	if err := decode(w, r, corev1.SchemeGroupVersion.WithKind("Binding"), &b); err != nil {
		return err
	}
	if err := s.reg.Bind(r.Context(), q, &b); err != nil {
		return err
	}
	success(w, r, http.StatusCreated)
	return nil
}

func (s *Server) evict(w http.ResponseWriter, r *http.Request, q registry.Request) error {
	e, err := decodeEviction(w, r)
	if err != nil {
		return err
	}
	if err := s.reg.Evict(r.Context(), q, e); err != nil {
		return err
	}
	success(w, r, http.StatusCreated)
	return nil
}

// decodeEviction reads an eviction, of the old version too.
func decodeEviction(w http.ResponseWriter, r *http.Request) (*policyv1.Eviction, error) {
	out, _, err := decodeKind(w, r, policyv1.SchemeGroupVersion.WithKind("Eviction"), &policyv1.Eviction{})
	if err != nil {
		return nil, err
	}
	switch e := out.(type) {
	case *policyv1.Eviction:
		return e, nil
	case *policyv1beta1.Eviction:
		return &policyv1.Eviction{ObjectMeta: e.ObjectMeta, DeleteOptions: e.DeleteOptions}, nil
	}
	return nil, apierrors.NewBadRequest("an eviction of policy/v1 is expected")
}

func (s *Server) finalize(w http.ResponseWriter, r *http.Request, q registry.Request) error {
	f, err := negotiate(r, anyTransformation)
	if err != nil {
		return err
	}
	var ns corev1.Namespace
	if err := decode(w, r, q.Resource.GVK(), &ns); err != nil {
		return err
	}
	it, err := s.reg.Finalize(r.Context(), q, &ns)
	if err != nil {
		return err
	}
	s.writeItem(w, r, http.StatusOK, f, q.Resource, it.Apart())
	return nil
}

func (s *Server) scale(w http.ResponseWriter, r *http.Request, verb string, q registry.Request) error {
	f, err := negotiate(r, anyTransformation)
	if err != nil {
		return err
	}
	f.as = ""
	gvk := autoscalingv1.SchemeGroupVersion.WithKind("Scale")
	var change func(*autoscalingv1.Scale) (*autoscalingv1.Scale, error)
	switch verb {
	case "get":
		it, err := s.reg.Get(r.Context(), q, "")
		if err != nil {
			return err
		}
		writeObject(w, r, http.StatusOK, f, registry.ScaleOf(q.Resource, it.Object))
		return nil
	case "update":
		var next autoscalingv1.Scale
		if err := decode(w, r, gvk, &next); err != nil {
			return err
		}
		change = func(*autoscalingv1.Scale) (*autoscalingv1.Scale, error) { return &next, nil }
	case "patch":
		p, err := patchOf(w, r)
		if err != nil {
			return err
		}
		change = func(cur *autoscalingv1.Scale) (*autoscalingv1.Scale, error) { return patchScale(cur, p) }
	default:
		return apierrors.NewMethodNotSupported(q.Resource.GroupResource(), verb)
	}
	out, err := s.reg.UpdateScale(r.Context(), q, change)
	if err != nil {
		return err
	}
	writeObject(w, r, http.StatusOK, f, out)
	return nil
}

func patchScale(cur *autoscalingv1.Scale, p registry.Patch) (*autoscalingv1.Scale, error) {
	version := cur.ResourceVersion
	before, err := json.Marshal(cur)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	var after []byte
	switch p.Type {
	case types.JSONPatchType:
		patch, err := jsonpatch.DecodePatch(p.Data)
		if err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		if after, err = registry.ApplyJSON(patch, before); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
	default: // a Scale has no lists: the other patch types are merges
		if after, err = jsonpatch.MergePatch(before, p.Data); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
	}
	var out autoscalingv1.Scale
	if err := json.Unmarshal(after, &out); err != nil {
		return nil, apierrors.NewInvalid(schema.GroupKind{}, "", field.ErrorList{field.Invalid(field.NewPath("patch"), string(p.Data), err.Error())})
	}
	if out.ResourceVersion == version {
		out.ResourceVersion = ""
	}
	return &out, nil
}

// Bounds of a requested token's life, as in Kubernetes.
const (
	minTokenLife     = 10 * time.Minute
	maxTokenLife     = 1 << 32 * time.Second
	defaultTokenLife = time.Hour
)

func (s *Server) issueToken(w http.ResponseWriter, r *http.Request, q registry.Request) error {
	f, err := negotiate(r, anyTransformation)
	if err != nil {
		return err
	}
	var t authenticationv1.TokenRequest
	if err := decode(w, r, authenticationv1.SchemeGroupVersion.WithKind("TokenRequest"), &t); err != nil {
		return err
	}
	switch {
	case t.Namespace != "" && t.Namespace != q.Namespace:
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	case t.Name != "" && t.Name != q.Name:
		return apierrors.NewInvalid(authenticationv1.SchemeGroupVersion.WithKind("TokenRequest").GroupKind(), q.Name, field.ErrorList{
			field.Invalid(field.NewPath("metadata", "name"), t.Name, "must match the service account name if specified")})
	}
	t.Name, t.Namespace = q.Name, q.Namespace
	admitted, err := s.admitToken(r, q, &t)
	if err != nil {
		return err
	}
	if err := s.IssueToken(r, q, admitted); err != nil {
		return err
	}
	f.as = ""
	writeObject(w, r, http.StatusCreated, f, admitted)
	return nil
}

// IssueToken fills the status of a token request for the service account that q
// names.
func (s *Server) IssueToken(r *http.Request, q registry.Request, t *authenticationv1.TokenRequest) error {
	it, err := s.reg.Get(r.Context(), registry.Request{Resource: q.Resource, Namespace: q.Namespace, Name: q.Name}, "")
	if err != nil {
		return err
	}
	return IssueToken(s.reg, s.tokens, it.Object.(*corev1.ServiceAccount), t, s.now())
}

// IssueToken fills the status of a token request for a service account.
func IssueToken(reg *registry.Registry, tokens *auth.Tokens, sa *corev1.ServiceAccount, t *authenticationv1.TokenRequest, now time.Time) error {
	gk := authenticationv1.SchemeGroupVersion.WithKind("TokenRequest").GroupKind()
	life := defaultTokenLife
	if e := t.Spec.ExpirationSeconds; e != nil {
		life = time.Duration(*e) * time.Second
		path := field.NewPath("spec", "expirationSeconds")
		if life < minTokenLife {
			return apierrors.NewInvalid(gk, "", field.ErrorList{field.Invalid(path, *e, "may not specify a duration less than 10 minutes")})
		}
		if life > maxTokenLife {
			return apierrors.NewInvalid(gk, "", field.ErrorList{field.Invalid(path, *e, "may not specify a duration larger than 2^32 seconds")})
		}
	} else {
		n := int64(life / time.Second)
		t.Spec.ExpirationSeconds = &n
	}
	b := auth.Bound{Namespace: sa.Namespace, ServiceAccount: auth.NamedObject{Name: sa.Name, UID: sa.UID}}
	if ref := t.Spec.BoundObjectRef; ref != nil {
		obj, err := boundObject(reg, sa.Namespace, ref)
		if err != nil {
			return err
		}
		named := &auth.NamedObject{Name: obj.GetName(), UID: obj.GetUID()}
		switch ref.Kind {
		case "Pod":
			pod := obj.(*corev1.Pod)
			if pod.Spec.ServiceAccountName != sa.Name {
				return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to pod running with different serviceaccount name", sa.Name))
			}
			b.Pod = named
			if pod.Spec.NodeName != "" {
				b.Node = &auth.NamedObject{Name: pod.Spec.NodeName}
				if node := reg.Resource(nodesGVR).Cache.Get(pod.Spec.NodeName); node != nil {
					b.Node.UID = node.Object.GetUID()
				}
			}
		case "Secret":
			b.Secret = named
		case "Node":
			b.Node = named
		}
	}
	if len(t.Spec.Audiences) == 0 {
		t.Spec.Audiences = tokens.Audiences
	}
	token, expires, err := tokens.Issue(b, t.Spec.Audiences, life)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	t.Status = authenticationv1.TokenRequestStatus{Token: token, ExpirationTimestamp: metav1.NewTime(expires)}
	return nil
}

var nodesGVR = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}

func boundObject(reg *registry.Registry, namespace string, ref *authenticationv1.BoundObjectReference) (kind.Object, error) {
	resource := map[string]string{"Pod": "pods", "Secret": "secrets", "Node": "nodes"}[ref.Kind]
	if resource == "" || strings.Contains(ref.APIVersion, "/") {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("cannot bind token to object of type %s, Kind=%s", ref.APIVersion, ref.Kind))
	}
	res := reg.Resource(schema.GroupVersionResource{Version: "v1", Resource: resource})
	key := ref.Name
	if res.Namespaced {
		key = namespace + "/" + ref.Name
	}
	it := res.Cache.Get(key)
	if it == nil {
		return nil, apierrors.NewNotFound(res.GroupResource(), ref.Name)
	}
	if ref.UID != "" && ref.UID != it.Object.GetUID() {
		return nil, apierrors.NewConflict(res.GroupResource(), ref.Name, fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID))
	}
	return it.Object, nil
}
