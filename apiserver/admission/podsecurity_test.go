package admission_test

import (
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"knarr.dev/knarr/apiserver/admission"
	"knarr.dev/knarr/apiserver/apitest"
)

// warnings collects the Warning headers of a client.
type warnings struct {
	mu   sync.Mutex
	list []string
}

func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, text)
}

func (w *warnings) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.list
	w.list = nil
	return out
}

func TestPodSecurity(t *testing.T) {
	s := apitest.Start(t, apitest.Options{Admission: func(d *admission.Deps) { d.PodSecurity.Exemptions.Usernames = []string{"trusted"} }})
	ctx, create := t.Context(), metav1.CreateOptions{}
	cfg, warned := s.Admin(t), &warnings{}
	cfg.WarningHandler = warned
	c := apitest.ClientOf(t, cfg)
	namespace := func(name string, labels map[string]string) {
		t.Helper()
		if _, err := c.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, create); err != nil {
			t.Fatal(err)
		}
		if _, err := c.CoreV1().ServiceAccounts(name).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, create); err != nil {
			t.Fatal(err)
		}
	}
	const prefix = "pod-security.kubernetes.io/"
	namespace("free", nil)
	namespace("strict", map[string]string{prefix + "enforce": "restricted"})
	namespace("warns", map[string]string{prefix + "warn": "baseline", prefix + "warn-version": "v1.30"})
	host := corev1.PodSpec{HostNetwork: true, Containers: []corev1.Container{{Name: "c", Image: "i"}}}
	pod := func(ns string, spec corev1.PodSpec) error {
		_, err := c.CoreV1().Pods(ns).Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "x"}, Spec: spec}, create)
		return err
	}
	if err := pod("free", host); err != nil {
		t.Errorf("a namespace without labels: %v", err)
	}
	const want = `pods "x" is forbidden: violates PodSecurity "restricted:latest": host namespaces (hostNetwork=true), allowPrivilegeEscalation != false (container "c" must set securityContext.allowPrivilegeEscalation=false), ` +
		`unrestricted capabilities (container "c" must set securityContext.capabilities.drop=["ALL"]), runAsNonRoot != true (pod or container "c" must set securityContext.runAsNonRoot=true), ` +
		`seccompProfile (pod or container "c" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")`
	if err := pod("strict", host); !apierrors.IsForbidden(err) || err.Error() != want {
		t.Errorf("enforce:\n have %v\n want %s", err, want)
	}
	yes, no := true, false
	good := corev1.PodSpec{SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: &yes, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
		Containers: []corev1.Container{{Name: "c", Image: "i", SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}}}}
	if err := pod("strict", good); err != nil {
		t.Errorf("a pod that keeps the standard: %v", err)
	}
	warned.take()
	if err := pod("warns", host); err != nil {
		t.Errorf("warn: %v", err)
	}
	if w := warned.take(); len(w) != 1 || !strings.HasPrefix(w[0], `would violate PodSecurity "baseline:v1.30": host namespaces (hostNetwork=true)`) {
		t.Errorf("warnings %q", w)
	}
	labels := map[string]string{"a": "b"}
	if _, err := c.AppsV1().Deployments("warns").Create(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d"}, Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: host}}}, create); err != nil {
		t.Error(err)
	}
	if w := warned.take(); len(w) != 1 || !strings.HasPrefix(w[0], "would violate PodSecurity") {
		t.Errorf("warnings of a Deployment %q", w)
	}
	label := func(ns, value string) error {
		_, err := c.CoreV1().Namespaces().Patch(ctx, ns, types.MergePatchType, []byte(`{"metadata":{"labels":{"`+prefix+`enforce":"`+value+`"}}}`), metav1.PatchOptions{})
		return err
	}
	if err := label("free", "nonsense"); !apierrors.IsInvalid(err) {
		t.Errorf("a level that does not exist: %v, want invalid", err)
	}
	warned.take()
	if err := label("free", "baseline"); err != nil {
		t.Error(err)
	}
	if w := warned.take(); len(w) == 0 || !strings.Contains(w[0], `existing pods in namespace "free" violate the new PodSecurity enforce level "baseline:latest"`) {
		t.Errorf("warnings about existing pods %q", w)
	}
	trusted := apitest.ClientOf(t, s.As(t, "trusted", "system:masters"))
	if _, err := trusted.CoreV1().Pods("strict").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "y"}, Spec: host}, create); err != nil {
		t.Errorf("an exempt user: %v", err)
	}
}

func TestEventRateLimit(t *testing.T) {
	s := apitest.Start(t, apitest.Options{Admission: func(d *admission.Deps) {
		d.EventLimits = []admission.EventLimit{{Type: "Namespace", QPS: 1, Burst: 3}}
	}})
	s.Namespace(t, "a")
	s.Namespace(t, "b")
	event := func(ns string) error {
		_, err := s.Client(t).CoreV1().Events(ns).Create(t.Context(), &corev1.Event{ObjectMeta: metav1.ObjectMeta{GenerateName: "e"}, InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: "p"}}, metav1.CreateOptions{})
		return err
	}
	for range 3 {
		if err := event("a"); err != nil {
			t.Fatal(err)
		}
	}
	if err := event("a"); !apierrors.IsTooManyRequests(err) {
		t.Errorf("the fourth at once: %v, want too many requests", err)
	}
	if err := event("b"); err != nil {
		t.Errorf("another namespace: %v", err)
	}
	if err := (&admission.EventLimit{Type: "X", QPS: 1, Burst: 1}).Validate(); err == nil {
		t.Error("a type that does not exist is valid")
	}
}
