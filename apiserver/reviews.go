package apiserver

import (
	"context"
	"net/http"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/auth/node"
	"knarr.dev/knarr/apiserver/codec"
	"knarr.dev/knarr/apiserver/registry"
)

// review is a kind that is only created and never stored: a question.
type review struct {
	*kind.Kind
	answer func(*Server, *http.Request, *requestInfo, runtime.Object) error
}

// reviews lists the questions that the server answers.
func reviews() []review {
	of := func(gv schema.GroupVersion, name string, namespaced bool, question func() kind.Object, answer func(*Server, *http.Request, *requestInfo, runtime.Object) error) review {
		return review{&kind.Kind{Group: gv.Group, Version: gv.Version, Kind: name, Resource: strings.ToLower(name) + "s", Namespaced: namespaced, New: question}, answer}
	}
	authn, authz := authenticationv1.SchemeGroupVersion, authorizationv1.SchemeGroupVersion
	return []review{
		of(authn, "TokenReview", false, func() kind.Object { return &authenticationv1.TokenReview{} }, (*Server).tokenReview),
		of(authn, "SelfSubjectReview", false, func() kind.Object { return &authenticationv1.SelfSubjectReview{} }, (*Server).selfSubjectReview),
		of(authz, "SubjectAccessReview", false, func() kind.Object { return &authorizationv1.SubjectAccessReview{} }, (*Server).subjectAccessReview),
		of(authz, "LocalSubjectAccessReview", true, func() kind.Object { return &authorizationv1.LocalSubjectAccessReview{} }, (*Server).subjectAccessReview),
		of(authz, "SelfSubjectAccessReview", false, func() kind.Object { return &authorizationv1.SelfSubjectAccessReview{} }, (*Server).selfSubjectAccessReview),
		of(authz, "SelfSubjectRulesReview", false, func() kind.Object { return &authorizationv1.SelfSubjectRulesReview{} }, (*Server).selfSubjectRulesReview),
	}
}

// describe is the review as discovery shows it.
func (rv review) describe() metav1.APIResource {
	return metav1.APIResource{Name: rv.Resource, SingularName: strings.ToLower(rv.Kind.Kind), Namespaced: rv.Namespaced, Kind: rv.Kind.Kind, Verbs: metav1.Verbs{"create"}}
}

// serveReview answers a request for one of the reviews; false if it is not one.
func (s *Server) serveReview(w http.ResponseWriter, r *http.Request, info *requestInfo) bool {
	if info.Group != authenticationv1.GroupName && info.Group != authorizationv1.GroupName {
		return false
	}
	for _, rv := range reviews() {
		if rv.GVR() != (schema.GroupVersionResource{Group: info.Group, Version: info.Version, Resource: info.Resource}) {
			continue
		}
		if info.Verb != "create" {
			writeError(w, r, apierrors.NewMethodNotSupported(schema.GroupResource{Group: info.Group, Resource: info.Resource}, info.Verb))
			return true
		}
		if err := s.ask(w, r, info, rv); err != nil {
			writeError(w, r, err)
		}
		return true
	}
	return false
}

// ask answers a question that admission lets pass.
func (s *Server) ask(w http.ResponseWriter, r *http.Request, info *requestInfo, rv review) error {
	f, err := negotiate(r, noTransformation) // an answer has no table
	if err != nil {
		return err
	}
	var obj runtime.Object = rv.New()
	if err := decode(w, r, rv.GVK(), obj); err != nil {
		return err
	}
	q := registry.Request{User: userFrom(r.Context()), Resource: registry.Unstored(rv.Kind), Namespace: info.Namespace, Warn: func(text string) { warn(w, text) }}
	if err := writeOptions(r, &q, info.Verb); err != nil {
		return err
	}
	if obj, err = s.reg.Admit(r.Context(), &q, registry.Create, rv.GVK(), obj, nil); err != nil {
		return err
	}
	if err := rv.answer(s, r, info, obj); err != nil {
		return err
	}
	codec.SetType(obj, rv.GVK())
	f.as = ""
	writeObject(w, r, http.StatusCreated, f, obj)
	return nil
}

func (s *Server) tokenReview(r *http.Request, _ *requestInfo, o runtime.Object) error {
	t := o.(*authenticationv1.TokenReview)
	if t.Spec.Token == "" {
		return apierrors.NewBadRequest("token is required for TokenReview in authentication")
	}
	user, audiences, err := s.authn.Token(r.Context(), t.Spec.Token, t.Spec.Audiences)
	if err != nil {
		t.Status = authenticationv1.TokenReviewStatus{Error: err.Error()}
		return nil
	}
	t.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: *user, Audiences: audiences}
	return nil
}

func (s *Server) selfSubjectReview(r *http.Request, _ *requestInfo, o runtime.Object) error {
	v := o.(*authenticationv1.SelfSubjectReview)
	v.CreationTimestamp = metav1.NewTime(s.now())
	v.Status.UserInfo = *userFrom(r.Context())
	return nil
}

func reviewAction(user *authenticationv1.UserInfo, res *authorizationv1.ResourceAttributes, non *authorizationv1.NonResourceAttributes) *auth.Action {
	if non != nil {
		return &auth.Action{User: user, Verb: non.Verb, Path: non.Path}
	}
	a := &auth.Action{User: user, Verb: res.Verb, Group: res.Group, Version: res.Version, Resource: res.Resource,
		Subresource: res.Subresource, Namespace: res.Namespace, Name: res.Name}
	if f := res.FieldSelector; f != nil {
		a.FieldSelector = f.RawSelector
		for _, q := range f.Requirements { // those that a selector can say
			if q.Operator == metav1.FieldSelectorOpIn && len(q.Values) == 1 {
				a.FieldSelector = joinSelector(a.FieldSelector, q.Key+"="+q.Values[0])
			}
		}
	}
	if l := res.LabelSelector; l != nil {
		a.LabelSelector = l.RawSelector
		if sel, err := metav1.LabelSelectorAsSelector(&metav1.LabelSelector{MatchExpressions: l.Requirements}); err == nil && len(l.Requirements) > 0 {
			a.LabelSelector = sel.String()
		}
	}
	return a
}

func joinSelector(a, b string) string {
	if a == "" {
		return b
	}
	return a + "," + b
}

func needAttributes(gvk schema.GroupVersionKind, res *authorizationv1.ResourceAttributes, non *authorizationv1.NonResourceAttributes) error {
	if (res == nil) == (non == nil) {
		return apierrors.NewInvalid(gvk.GroupKind(), "", field.ErrorList{
			field.Invalid(field.NewPath("spec").Child("resourceAttributes"), nil, "exactly one of nonResourceAttributes or resourceAttributes must be specified")})
	}
	return nil
}

func access(ctx context.Context, authz auth.Authorizer, a *auth.Action) authorizationv1.SubjectAccessReviewStatus {
	d, reason := authz.Authorize(ctx, a)
	return authorizationv1.SubjectAccessReviewStatus{Allowed: d == auth.Permitted, Denied: d == auth.Denied, Reason: reason}
}

func (s *Server) subjectAccessReview(r *http.Request, info *requestInfo, o runtime.Object) error {
	spec, status := accessReview(o)
	if err := needAttributes(authorizationv1.SchemeGroupVersion.WithKind("SubjectAccessReview"), spec.ResourceAttributes, spec.NonResourceAttributes); err != nil {
		return err
	}
	if info.Namespace != "" && (spec.ResourceAttributes == nil || spec.ResourceAttributes.Namespace != info.Namespace) {
		return apierrors.NewBadRequest("spec.resourceAttributes.namespace must match namespace: " + info.Namespace)
	}
	*status = AnswerReview(r.Context(), s.authz, spec)
	return nil
}

// AnswerReview asks an authorizer what a SubjectAccessReview wants to know.
func AnswerReview(ctx context.Context, authz auth.Authorizer, spec *authorizationv1.SubjectAccessReviewSpec) authorizationv1.SubjectAccessReviewStatus {
	extra := make(map[string]authenticationv1.ExtraValue, len(spec.Extra))
	for k, v := range spec.Extra {
		extra[k] = authenticationv1.ExtraValue(v)
	}
	user := &authenticationv1.UserInfo{Username: spec.User, Groups: spec.Groups, UID: spec.UID, Extra: extra}
	return access(ctx, authz, reviewAction(user, spec.ResourceAttributes, spec.NonResourceAttributes))
}

func accessReview(o runtime.Object) (*authorizationv1.SubjectAccessReviewSpec, *authorizationv1.SubjectAccessReviewStatus) {
	if l, ok := o.(*authorizationv1.LocalSubjectAccessReview); ok {
		return &l.Spec, &l.Status
	}
	r := o.(*authorizationv1.SubjectAccessReview)
	return &r.Spec, &r.Status
}

func (s *Server) selfSubjectAccessReview(r *http.Request, _ *requestInfo, o runtime.Object) error {
	v := o.(*authorizationv1.SelfSubjectAccessReview)
	if err := needAttributes(authorizationv1.SchemeGroupVersion.WithKind("SelfSubjectAccessReview"), v.Spec.ResourceAttributes, v.Spec.NonResourceAttributes); err != nil {
		return err
	}
	v.Status = access(r.Context(), s.authz, reviewAction(userFrom(r.Context()), v.Spec.ResourceAttributes, v.Spec.NonResourceAttributes))
	return nil
}

func (s *Server) selfSubjectRulesReview(r *http.Request, _ *requestInfo, o runtime.Object) error {
	v := o.(*authorizationv1.SelfSubjectRulesReview)
	if v.Spec.Namespace == "" {
		return apierrors.NewBadRequest("no namespace on request")
	}
	v.Status = authorizationv1.SubjectRulesReviewStatus{ResourceRules: []authorizationv1.ResourceRule{}, NonResourceRules: []authorizationv1.NonResourceRule{}}
	add := func(rules []rbacv1.PolicyRule) bool {
		for _, rule := range rules {
			if len(rule.Resources) > 0 {
				v.Status.ResourceRules = append(v.Status.ResourceRules, authorizationv1.ResourceRule{Verbs: rule.Verbs, APIGroups: rule.APIGroups, Resources: rule.Resources, ResourceNames: rule.ResourceNames})
			}
			if len(rule.NonResourceURLs) > 0 {
				v.Status.NonResourceRules = append(v.Status.NonResourceRules, authorizationv1.NonResourceRule{Verbs: rule.Verbs, NonResourceURLs: rule.NonResourceURLs})
			}
		}
		return true
	}
	user := userFrom(r.Context())
	for _, step := range s.authz.Steps {
		switch step.(type) {
		case *auth.RBAC, *node.Authorizer:
		default:
			v.Status.Incomplete, v.Status.EvaluationError = true, "webhook authorizer does not support user rule resolution"
		}
	}
	if _, isNode := node.Identify(user); isNode {
		v.Status.Incomplete, v.Status.EvaluationError = true, "node authorizer does not support user rule resolution"
	}
	s.authz.Visit(user, v.Spec.Namespace, add)
	if contains(user.Groups, auth.GroupMasters) {
		add([]rbacv1.PolicyRule{{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}}, {Verbs: []string{"*"}, NonResourceURLs: []string{"*"}}})
	}
	return nil
}
