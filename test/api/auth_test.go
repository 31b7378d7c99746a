package api

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"knarr.dev/knarr/apiserver/apitest"
)

func TestRBAC(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	ctx := t.Context()
	admin := s.Client(t)
	s.Namespace(t, "other")
	must(admin.CoreV1().ConfigMaps("default").Create(ctx, configMap("one"), metav1.CreateOptions{}))(t)
	bob := apitest.ClientOf(t, s.As(t, "bob", "devs"))
	get := func(ns, name string) error {
		_, err := bob.CoreV1().ConfigMaps(ns).Get(ctx, name, metav1.GetOptions{})
		return err
	}
	if err := get("default", "one"); !apierrors.IsForbidden(err) {
		t.Fatalf("before any role: %v", err)
	}
	must(admin.RbacV1().Roles("default").Create(ctx, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "r"},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"get", "list", "watch"}, ResourceNames: []string{"one"}}}}, metav1.CreateOptions{}))(t)
	must(admin.RbacV1().RoleBindings("default").Create(ctx, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "b"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: "devs"}}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "r"}}, metav1.CreateOptions{}))(t)
	// The very next request sees the binding.
	if err := get("default", "one"); err != nil {
		t.Errorf("with a role: %v", err)
	}
	if err := get("default", "two"); !apierrors.IsForbidden(err) {
		t.Errorf("another name: %v", err)
	}
	if err := get("other", "one"); !apierrors.IsForbidden(err) {
		t.Errorf("another namespace: %v", err)
	}
	list := func(sel string) error {
		_, err := bob.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{FieldSelector: sel})
		return err
	}
	if err := list("metadata.name=one"); err != nil {
		t.Errorf("a list of the one name: %v", err)
	}
	if err := list(""); !apierrors.IsForbidden(err) {
		t.Errorf("a list of all: %v", err)
	}
	w, err := bob.CoreV1().ConfigMaps("default").Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=one"})
	if err != nil {
		t.Fatalf("a watch of the one name: %v", err)
	}
	expect(t, w, "ADDED one")
	w.Stop()
	// A role in a namespace gives nothing of the cluster, however the path is written.
	must(admin.RbacV1().Roles("default").Create(ctx, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "nodes"},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"*"}}}}, metav1.CreateOptions{}))(t)
	must(admin.RbacV1().RoleBindings("default").Create(ctx, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "nodes"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "bob"}}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "nodes"}}, metav1.CreateOptions{}))(t)
	p := newPeer(t, s.As(t, "bob"))
	for _, path := range []string{"/api/v1/nodes", "/api/v1/namespaces/default/nodes", "/api/v1/namespaces", "/apis/rbac.authorization.k8s.io/v1/namespaces/default/clusterroles", "/api/v1/configmaps"} {
		if a := p.do(t, "GET", path, ""); a.code == 200 {
			t.Errorf("%s: %d %.100s", path, a.code, a.body)
		}
	}
	if err := admin.RbacV1().RoleBindings("default").Delete(ctx, "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := apitest.ClientOf(t, s.As(t, "eve", "devs")).CoreV1().ConfigMaps("default").Delete(ctx, "one", metav1.DeleteOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("after the binding: %v", err)
	}
}

func TestImpersonation(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	who := func(cfg *rest.Config, i rest.ImpersonationConfig) (authenticationv1.UserInfo, error) {
		cfg.Impersonate = i
		r, err := apitest.ClientOf(t, cfg).AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if err != nil {
			return authenticationv1.UserInfo{}, err
		}
		return r.Status.UserInfo, nil
	}
	if u, err := who(s.As(t, "ann", "g"), rest.ImpersonationConfig{}); err != nil || u.Username != "ann" || strings.Join(u.Groups, " ") != "g system:authenticated" {
		t.Errorf("%+v %v", u, err)
	}
	u, err := who(s.Admin(t), rest.ImpersonationConfig{UserName: "bob", Groups: []string{"a", "b"}, UID: "7", Extra: map[string][]string{"Scope/x": {"1", "2"}}})
	if err != nil || u.Username != "bob" || u.UID != "7" || strings.Join(u.Groups, " ") != "a b system:authenticated" || strings.Join(u.Extra["scope/x"], " ") != "1 2" {
		t.Errorf("%+v %v", u, err)
	}
	u, err = who(s.Admin(t), rest.ImpersonationConfig{UserName: "system:serviceaccount:default:x"})
	if err != nil || strings.Join(u.Groups, " ") != "system:serviceaccounts system:serviceaccounts:default system:authenticated" {
		t.Errorf("%+v %v", u, err)
	}
	_, err = who(s.As(t, "ann"), rest.ImpersonationConfig{UserName: "bob"})
	if want := `users "bob" is forbidden: User "ann" cannot impersonate resource "users" in API group "" at the cluster scope`; !apierrors.IsForbidden(err) || err.Error() != want {
		t.Errorf("%v", err)
	}
	if a := newPeer(t, s.Admin(t)).do(t, "GET", "/api/v1/pods", "", "Impersonate-Group", "x"); a.code < 400 {
		t.Errorf("a group without a user: %d", a.code)
	}
}

func TestAccessReviews(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	ctx := t.Context()
	bob := apitest.ClientOf(t, s.As(t, "bob")).AuthorizationV1()
	ask := func(verb string) bool {
		return must(bob.SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Resource: "pods", Namespace: "default"}}}, metav1.CreateOptions{}))(t).Status.Allowed
	}
	if ask("list") {
		t.Error("allowed without a role")
	}
	admin := s.Client(t)
	must(admin.RbacV1().RoleBindings("default").Create(ctx, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "v"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "bob"}}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"}}, metav1.CreateOptions{}))(t)
	if !ask("list") || ask("delete") {
		t.Error("view may list and not delete")
	}
	sar := func(user string, a *authorizationv1.ResourceAttributes, n *authorizationv1.NonResourceAttributes) (bool, error) {
		r, err := admin.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: user, ResourceAttributes: a, NonResourceAttributes: n}}, metav1.CreateOptions{})
		if err != nil {
			return false, err
		}
		return r.Status.Allowed, nil
	}
	if ok, err := sar("bob", &authorizationv1.ResourceAttributes{Verb: "get", Resource: "configmaps", Namespace: "default"}, nil); err != nil || !ok {
		t.Errorf("%v %v", ok, err)
	}
	if ok, err := sar("bob", nil, &authorizationv1.NonResourceAttributes{Verb: "get", Path: "/metrics"}); err != nil || ok {
		t.Errorf("%v %v", ok, err)
	}
	if _, err := sar("bob", nil, nil); !apierrors.IsInvalid(err) {
		t.Errorf("a question about nothing: %v", err)
	}
	rules := must(bob.SelfSubjectRulesReviews().Create(ctx, &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "default"}}, metav1.CreateOptions{}))(t)
	if len(rules.Status.ResourceRules) == 0 || len(rules.Status.NonResourceRules) == 0 {
		t.Errorf("%+v", rules.Status)
	}
}

func TestServiceAccountTokens(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	ctx, c := t.Context(), s.Client(t)
	sa := must(c.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "robot"}}, metav1.CreateOptions{}))(t)
	ask := func(spec authenticationv1.TokenRequestSpec) (*authenticationv1.TokenRequest, error) {
		return c.CoreV1().ServiceAccounts("default").CreateToken(ctx, "robot", &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
	}
	tr := must(ask(authenticationv1.TokenRequestSpec{}))(t)
	if d := time.Until(tr.Status.ExpirationTimestamp.Time); d < 59*time.Minute || d > time.Hour || *tr.Spec.ExpirationSeconds != 3600 {
		t.Errorf("lives for %s", d)
	}
	cfg := s.Admin(t)
	cfg.CertData, cfg.KeyData, cfg.BearerToken = nil, nil, tr.Status.Token
	robot := apitest.ClientOf(t, cfg)
	me := must(robot.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{}))(t)
	if me.Status.UserInfo.Username != "system:serviceaccount:default:robot" || me.Status.UserInfo.UID != string(sa.UID) {
		t.Errorf("%+v", me.Status.UserInfo)
	}
	review := func(token string, audiences ...string) authenticationv1.TokenReviewStatus {
		return must(c.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences}}, metav1.CreateOptions{}))(t).Status
	}
	if r := review(tr.Status.Token); !r.Authenticated || r.User.Username != "system:serviceaccount:default:robot" {
		t.Errorf("%+v", r)
	}
	if r := review(tr.Status.Token, "elsewhere"); r.Authenticated || r.Error == "" {
		t.Errorf("another audience: %+v", r)
	}
	if r := review(tr.Status.Token + "x"); r.Authenticated {
		t.Errorf("a forged token: %+v", r)
	}
	vault := must(ask(authenticationv1.TokenRequestSpec{Audiences: []string{"vault"}}))(t)
	if r := review(vault.Status.Token, "vault"); !r.Authenticated || r.Audiences[0] != "vault" {
		t.Errorf("%+v", r)
	}
	if r := review(vault.Status.Token); r.Authenticated {
		t.Error("a token for others opens the API")
	}
	if _, err := ask(authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(60))}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "may not specify a duration less than 10 minutes") {
		t.Errorf("a short life: %v", err)
	}
	if err := c.CoreV1().ServiceAccounts("default").Delete(ctx, "robot", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if r := review(tr.Status.Token); r.Authenticated {
		t.Error("the token outlives its account")
	}
	if _, err := robot.CoreV1().Pods("default").List(ctx, metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("%v", err)
	}
}

// TestIssuerDiscovery checks a token as others would: by the published keys.
func TestIssuerDiscovery(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	p := newPeer(t, s.Admin(t))
	doc := p.do(t, "GET", "/.well-known/openid-configuration", "").object(t)
	if doc["issuer"] != s.Tokens.Issuer || doc["jwks_uri"] != s.Tokens.Issuer+"/openid/v1/jwks" {
		t.Errorf("%v", doc)
	}
	a := p.do(t, "GET", "/openid/v1/jwks", "")
	var set jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(a.body), &set); err != nil || a.header.Get("Content-Type") != "application/jwk-set+json" {
		t.Fatalf("%v %s", err, a.body)
	}
	token := must(jwt.ParseSigned(s.AdminToken(t), []jose.SignatureAlgorithm{jose.ES256}))(t)
	keys := set.Key(token.Headers[0].KeyID)
	var c jwt.Claims
	if len(keys) != 1 || token.Claims(keys[0], &c) != nil || c.Issuer != s.Tokens.Issuer {
		t.Errorf("%d keys, claims %+v", len(keys), c)
	}
}
