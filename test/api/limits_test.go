package api

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"knarr.dev/knarr/apiserver/apitest"
)

func quantities(pairs ...string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

// account makes the service account that pods need; there is no controller here.
func account(t testing.TB, c *kubernetes.Clientset) {
	t.Helper()
	if _, err := c.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// quotaOf makes a quota and counts for it, as the controller would.
func quotaOf(t testing.TB, c *kubernetes.Clientset, name string, spec corev1.ResourceQuotaSpec) {
	t.Helper()
	q, err := c.CoreV1().ResourceQuotas("default").Create(t.Context(), &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	q.Status = corev1.ResourceQuotaStatus{Hard: spec.Hard, Used: corev1.ResourceList{}}
	for n := range spec.Hard {
		q.Status.Used[n] = resource.MustParse("0")
	}
	if _, err := c.CoreV1().ResourceQuotas("default").UpdateStatus(t.Context(), q, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// Writers at one time never get more than the quota has.
func TestQuotaUnderConcurrentWriters(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c := s.Client(t)
	quotaOf(t, c, "q", corev1.ResourceQuotaSpec{Hard: quantities("configmaps", "7", "count/configmaps", "10")})
	var granted, refused atomic.Int32
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			_, err := c.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("m", i)}}, metav1.CreateOptions{})
			switch {
			case err == nil:
				granted.Add(1)
			case apierrors.IsForbidden(err):
				refused.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if granted.Load() != 7 || refused.Load() != 13 {
		t.Errorf("%d granted and %d refused; the quota has 7", granted.Load(), refused.Load())
	}
	q, err := c.CoreV1().ResourceQuotas("default").Get(t.Context(), "q", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if used := q.Status.Used["configmaps"]; used.Value() != 7 {
		t.Errorf("%s used, want 7", used.String())
	}
}

func TestQuotaOfPods(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c := s.Client(t)
	account(t, c)
	quotaOf(t, c, "compute", corev1.ResourceQuotaSpec{Hard: quantities("requests.cpu", "1", "limits.memory", "1Gi")})
	quotaOf(t, c, "best-effort", corev1.ResourceQuotaSpec{Hard: quantities("pods", "0"), Scopes: []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeBestEffort}})
	pod := func(r corev1.ResourceRequirements) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "x", Resources: r}}}}
	}
	for _, x := range []struct {
		name string
		pod  *corev1.Pod
		want string
	}{
		{"says nothing", pod(corev1.ResourceRequirements{}), `pods "p" is forbidden: exceeded quota: best-effort, requested: pods=1, used: pods=0, limited: pods=0`},
		{"says little", pod(corev1.ResourceRequirements{Requests: quantities("memory", "1Mi")}), `pods "p" is forbidden: failed quota: compute: must specify limits.memory for: c; requests.cpu for: c`},
		{"wants too much", pod(corev1.ResourceRequirements{Requests: quantities("cpu", "1500m"), Limits: quantities("memory", "1Mi", "cpu", "2")}),
			`pods "p" is forbidden: exceeded quota: compute, requested: requests.cpu=1500m, used: requests.cpu=0, limited: requests.cpu=1`},
		{"fits", pod(corev1.ResourceRequirements{Requests: quantities("cpu", "700m"), Limits: quantities("memory", "1Mi")}), ""},
	} {
		_, err := c.CoreV1().Pods("default").Create(t.Context(), x.pod, metav1.CreateOptions{})
		if got := message(err); got != x.want {
			t.Errorf("a pod that %s:\n got %s\nwant %s", x.name, got, x.want)
		}
	}
	second := pod(corev1.ResourceRequirements{Requests: quantities("cpu", "400m"), Limits: quantities("memory", "1Mi")})
	second.Name = "second"
	_, err := c.CoreV1().Pods("default").Create(t.Context(), second, metav1.CreateOptions{})
	if want := `pods "second" is forbidden: exceeded quota: compute, requested: requests.cpu=400m, used: requests.cpu=700m, limited: requests.cpu=1`; message(err) != want {
		t.Errorf("got %s\nwant %s", message(err), want)
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestLimitRanges(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	c := s.Client(t)
	account(t, c)
	if _, err := c.CoreV1().LimitRanges("default").Create(t.Context(), &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Name: "l"}, Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{
		{Type: corev1.LimitTypeContainer, Min: quantities("cpu", "50m"), Max: quantities("cpu", "1"), Default: quantities("cpu", "500m"), DefaultRequest: quantities("cpu", "100m"), MaxLimitRequestRatio: quantities("cpu", "8")},
		{Type: corev1.LimitTypePersistentVolumeClaim, Min: quantities("storage", "1Gi"), Max: quantities("storage", "2Gi")},
	}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pods := c.CoreV1().Pods("default")
	pod := func(r corev1.ResourceRequirements) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "x", Resources: r}}}}
	}
	p, err := pods.Create(t.Context(), pod(corev1.ResourceRequirements{}), metav1.CreateOptions{DryRun: []string{"All"}})
	if err != nil {
		t.Fatal(err)
	}
	r := p.Spec.Containers[0].Resources
	if r.Requests.Cpu().String() != "100m" || r.Limits.Cpu().String() != "500m" {
		t.Errorf("defaults: %v", r)
	}
	if got, want := p.Annotations["kubernetes.io/limit-ranger"], "LimitRanger plugin set: cpu request for container c; cpu limit for container c"; got != want {
		t.Errorf("annotation %q, want %q", got, want)
	}
	for _, x := range []struct {
		r    corev1.ResourceRequirements
		want string
	}{
		{corev1.ResourceRequirements{Requests: quantities("cpu", "10m"), Limits: quantities("cpu", "20m")}, "minimum cpu usage per Container is 50m, but request is 10m"},
		{corev1.ResourceRequirements{Requests: quantities("cpu", "1"), Limits: quantities("cpu", "2")}, "maximum cpu usage per Container is 1, but limit is 2"},
		{corev1.ResourceRequirements{Requests: quantities("cpu", "50m"), Limits: quantities("cpu", "1")}, "cpu max limit to request ratio per Container is 8, but provided ratio is 20.000000"},
	} {
		_, err := pods.Create(t.Context(), pod(x.r), metav1.CreateOptions{})
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), x.want) {
			t.Errorf("got %v\nwant %s", err, x.want)
		}
	}
	_, err = c.CoreV1().PersistentVolumeClaims("default").Create(t.Context(), &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Resources: corev1.VolumeResourceRequirements{Requests: quantities("storage", "5Gi")}}}, metav1.CreateOptions{})
	if want := "maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 5Gi"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

func certificateRequest(t testing.TB, organizations ...string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "bob", Organization: organizations}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func TestCertificateRequests(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	admin := s.Client(t)
	if _, err := admin.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "bob"},
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-requests"}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "bob", APIGroup: rbacv1.GroupName}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "cluster-requests"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{"certificates.k8s.io"}, Resources: []string{"certificatesigningrequests", "certificatesigningrequests/approval", "certificatesigningrequests/status"}, Verbs: []string{"*"}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	bob, err := kubernetes.NewForConfig(s.As(t, "bob"))
	if err != nil {
		t.Fatal(err)
	}
	request := func(name, signer string, organizations ...string) *certificatesv1.CertificateSigningRequest {
		return &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: certificateRequest(t, organizations...), SignerName: signer, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth}, Username: "somebody else"}}
	}
	if _, err := bob.CertificatesV1().CertificateSigningRequests().Create(t.Context(), request("m", certificatesv1.KubeAPIServerClientSignerName, "system:masters"), metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a request for system:masters: %v", err)
	}
	r, err := bob.CertificatesV1().CertificateSigningRequests().Create(t.Context(), request("r", "example.com/x"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Spec.Username != "bob" {
		t.Errorf("the request is %q's, want bob's", r.Spec.Username)
	}
	r.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test"}}
	_, err = bob.CertificatesV1().CertificateSigningRequests().UpdateApproval(t.Context(), "r", r, metav1.UpdateOptions{})
	if want := `certificatesigningrequests.certificates.k8s.io "r" is forbidden: user not permitted to approve requests with signerName "example.com/x"`; message(err) != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	if r, err = admin.CertificatesV1().CertificateSigningRequests().UpdateApproval(t.Context(), "r", r, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(r.Status.Conditions) != 1 || r.Status.Conditions[0].LastUpdateTime.IsZero() || r.Status.Conditions[0].LastTransitionTime.IsZero() {
		t.Errorf("conditions %+v", r.Status.Conditions)
	}
	bare := r.DeepCopy()
	bare.Status.Conditions = nil
	if _, err := admin.CertificatesV1().CertificateSigningRequests().UpdateStatus(t.Context(), bare, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("a writer of the status takes the approval back: %v", err)
	}
	r.Status.Certificate = []byte("nonsense")
	if _, err := admin.CertificatesV1().CertificateSigningRequests().UpdateStatus(t.Context(), r, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("a certificate that is none: %v", err)
	}
	r.Status.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.CA.Cert.Raw})
	if r, err = admin.CertificatesV1().CertificateSigningRequests().UpdateStatus(t.Context(), r, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(r.Status.Conditions) != 1 || len(r.Status.Certificate) == 0 {
		t.Errorf("status %+v", r.Status)
	}
}

// TestProxies reaches a server of the test's through a pod and a service.
func TestProxies(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %q", r.Method, r.URL.RequestURI(), r.Header.Get("Authorization"))
	}))
	t.Cleanup(backend.Close)
	u, err := url.Parse(backend.URL)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.ParseInt(u.Port(), 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	port, name := int32(number), "web"
	s := apitest.Start(t, apitest.Options{})
	c := s.Client(t)
	account(t, c)
	pod, err := c.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{
		Name: "c", Image: "x", Ports: []corev1.ContainerPort{{Name: name, ContainerPort: port}}}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.Status.PodIP, pod.Status.PodIPs = u.Hostname(), []corev1.PodIP{{IP: u.Hostname()}}
	if _, err := c.CoreV1().Pods("default").UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"s", "none"} {
		if _, err := c.CoreV1().Services("default").Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: n}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: name, Port: 80}}}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	admin := newPeer(t, s.Admin(t))
	const base = "/api/v1/namespaces/default/"
	for _, x := range []struct {
		method, path string
		code         int
		want         string
	}{
		{"GET", "pods/p/proxy/a/b?c=d", 200, `GET /a/b?c=d ""`},
		{"POST", "pods/p:web/proxy/", 200, `POST / ""`},
		{"DELETE", fmt.Sprintf("pods/http:p:%d/proxy/x", port), 200, `DELETE /x ""`},
		{"GET", "pods/p:none/proxy/x", 400, ""},
		{"GET", "pods/none/proxy/x", 404, ""},
		{"GET", "services/none/proxy/x", 503, `no endpoints available for service \"none\"`},
		{"GET", "services/s:other/proxy/x", 503, ""},
	} {
		a := admin.do(t, x.method, base+x.path, "")
		if a.code != x.code || !strings.Contains(a.body, x.want) {
			t.Errorf("%s %s: %d %s, want %d %s", x.method, x.path, a.code, a.body, x.code, x.want)
		}
	}
}
