package api

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/apiserver/bootstrap"
	"knarr.dev/knarr/controller/bootstraptokens"
	"knarr.dev/knarr/controller/satokens"
)

// until waits for an event of w that ok likes.
func until[T runtime.Object](t *testing.T, what string, w watch.Interface, ok func(watch.EventType, T) bool) T {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		select {
		case ev, open := <-w.ResultChan():
			if o, is := ev.Object.(T); is && ok(ev.Type, o) {
				return o
			}
			if !open {
				t.Fatalf("%s: the watch has ended", what)
			}
		case <-timeout:
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func tokenSecret(name, account string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{"kubernetes.io/service-account.name": account}}, Type: corev1.SecretTypeServiceAccountToken}
}

func TestServiceAccountTokenSecrets(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	control(t, s, clock.RealClock{}, satokens.New(s.Tokens, s.CA.PEM))
	c, ctx := s.Client(t), t.Context()
	secrets, accounts := c.CoreV1().Secrets("default"), c.CoreV1().ServiceAccounts("default")
	account := must(accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "robot"}}, metav1.CreateOptions{}))(t)
	w := must(secrets.Watch(ctx, metav1.ListOptions{}))(t)
	defer w.Stop()
	must(secrets.Create(ctx, tokenSecret("t", "robot"), metav1.CreateOptions{}))(t)
	filled := until(t, "not filled", w, func(_ watch.EventType, s *corev1.Secret) bool { return len(s.Data["token"]) > 0 })
	if !bytes.Equal(filled.Data["ca.crt"], s.CA.PEM) || string(filled.Data["namespace"]) != "default" || filled.Annotations["kubernetes.io/service-account.uid"] != string(account.UID) {
		t.Errorf("filled: %v %v", filled.Annotations, filled.Data)
	}
	token := string(filled.Data["token"])
	review := func(token string, audiences ...string) authenticationv1.TokenReviewStatus {
		return must(c.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences}}, metav1.CreateOptions{}))(t).Status
	}
	if r := review(token); !r.Authenticated || r.User.Username != "system:serviceaccount:default:robot" || r.User.UID != string(account.UID) || len(r.User.Groups) != 3 {
		t.Errorf("review %+v", r)
	}
	if r := review(token, "elsewhere"); r.Authenticated {
		t.Error("the token is good for another audience")
	}
	used := until(t, "use not noted", w, func(_ watch.EventType, s *corev1.Secret) bool {
		return s.Labels["kubernetes.io/legacy-token-last-used"] != ""
	})
	if day := used.Labels["kubernetes.io/legacy-token-last-used"]; day != time.Now().UTC().Format(time.DateOnly) {
		t.Errorf("last used %s", day)
	}
	robot := must(kubernetes.NewForConfig(&rest.Config{Host: s.URL, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: filled.Data["ca.crt"]}}))(t)
	if _, err := robot.CoreV1().Pods("default").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "system:serviceaccount:default:robot") {
		t.Errorf("as the robot: %v", err)
	}
	label := func(v string) {
		must(secrets.Patch(ctx, "t", types.MergePatchType, []byte(`{"metadata":{"labels":{"kubernetes.io/legacy-token-invalid-since":`+v+`}}}`), metav1.PatchOptions{}))(t)
	}
	label(`"2026-01-01"`)
	if r := review(token); r.Authenticated || !strings.Contains(r.Error, "has been marked invalid") {
		t.Errorf("marked invalid: %+v", r)
	}
	label(`null`)
	// A token that is taken out of its secret holds no longer; another one comes.
	must(secrets.Patch(ctx, "t", types.MergePatchType, []byte(`{"data":{"token":null,"ca.crt":"eA=="}}`), metav1.PatchOptions{}))(t)
	next := until(t, "not filled again", w, func(_ watch.EventType, s *corev1.Secret) bool {
		return len(s.Data["token"]) > 0 && string(s.Data["token"]) != token
	})
	if r := review(token); r.Authenticated || !strings.Contains(r.Error, "does not match server's copy") {
		t.Errorf("replaced: %+v", r)
	}
	if !bytes.Equal(next.Data["ca.crt"], s.CA.PEM) || !review(string(next.Data["token"])).Authenticated {
		t.Error("the second token is not good")
	}
	if err := accounts.Delete(ctx, "robot", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if review(string(next.Data["token"])).Authenticated {
		t.Error("the token of an account that is gone is good")
	}
	until(t, "not deleted with its account", w, func(typ watch.EventType, s *corev1.Secret) bool { return typ == watch.Deleted })
	// Without an account a secret does not stay.
	must(secrets.Create(ctx, tokenSecret("orphan", "nobody"), metav1.CreateOptions{}))(t)
	until(t, "not deleted without account", w, func(typ watch.EventType, s *corev1.Secret) bool {
		return typ == watch.Deleted && s.Name == "orphan"
	})
}

// Whoever knows a bootstrap token can tell that the public cluster-info is true.
func TestClusterInfo(t *testing.T) {
	s := apitest.Start(t, apitest.Options{Anonymous: bootstrap.PublicPath, ClusterInfo: "apiVersion: v1\nkind: Config\n"})
	control(t, s, clock.RealClock{}, bootstraptokens.NewSigning(), bootstraptokens.New())
	ctx := t.Context()
	public := must(kubernetes.NewForConfig(&rest.Config{Host: s.URL, TLSClientConfig: rest.TLSClientConfig{CAData: s.CA.PEM}}))(t).CoreV1().ConfigMaps("kube-public")
	info := must(public.Get(ctx, "cluster-info", metav1.GetOptions{}))(t)
	if info.Data["kubeconfig"] != "apiVersion: v1\nkind: Config\n" || len(info.Data) != 1 {
		t.Errorf("%v", info.Data)
	}
	for _, name := range []string{"kube-root-ca.crt", ""} {
		if _, err := public.Get(ctx, name, metav1.GetOptions{}); name != "" && !apierrors.IsUnauthorized(err) {
			t.Errorf("%s without credentials: %v", name, err)
		}
	}
	c := s.Client(t)
	w := must(c.CoreV1().ConfigMaps("kube-public").Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=cluster-info"}))(t)
	defer w.Stop()
	secrets := c.CoreV1().Secrets("kube-system")
	const id, secret = "07401b", "f395accd246ae52d"
	for name, data := range map[string]map[string]string{
		"bootstrap-token-" + id:  {"token-id": id, "token-secret": secret, "usage-bootstrap-signing": "true"},
		"bootstrap-token-abcdef": {"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true"},
	} {
		must(secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Type: "bootstrap.kubernetes.io/token", StringData: data}, metav1.CreateOptions{}))(t)
	}
	signed := until(t, "not signed", w, func(_ watch.EventType, cm *corev1.ConfigMap) bool { return cm.Data["jws-kubeconfig-"+id] != "" })
	header, signature, _ := strings.Cut(signed.Data["jws-kubeconfig-"+id], "..")
	mac := hmac.New(sha256.New, []byte(id+"."+secret))
	mac.Write([]byte(header + "." + base64.RawURLEncoding.EncodeToString([]byte(signed.Data["kubeconfig"]))))
	if want := base64.RawURLEncoding.EncodeToString(mac.Sum(nil)); signature != want || len(signed.Data) != 2 {
		t.Errorf("%v: want the signature %s", signed.Data, want)
	}
	if h, err := base64.RawURLEncoding.DecodeString(header); err != nil || string(h) != `{"alg":"HS256","kid":"07401b"}` {
		t.Errorf("header %s %v", h, err)
	}
	must(c.CoreV1().ConfigMaps("kube-public").Patch(ctx, "cluster-info", types.MergePatchType, []byte(`{"data":{"kubeconfig":"other"}}`), metav1.PatchOptions{}))(t)
	until(t, "not signed anew", w, func(_ watch.EventType, cm *corev1.ConfigMap) bool {
		v := cm.Data["jws-kubeconfig-"+id]
		return v != "" && !strings.HasSuffix(v, signature)
	})
	if err := secrets.Delete(ctx, "bootstrap-token-"+id, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "signature stays", w, func(_ watch.EventType, cm *corev1.ConfigMap) bool { return len(cm.Data) == 1 })
}
