package node_test

import (
	"context"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/apiserver/auth"
)

var (
	get    = metav1.GetOptions{}
	create = metav1.CreateOptions{}
)

// world is a cluster of two nodes; a pod on each names its own secret.
func world(t *testing.T) (admin, a *kubernetes.Clientset, pods map[string]*corev1.Pod) {
	s := apitest.Start(t, apitest.Options{})
	admin, a = s.Client(t), apitest.ClientOf(t, s.As(t, auth.UserNode+"a", auth.GroupNodes))
	ctx := t.Context()
	s.Namespace(t, "x")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	pods = map[string]*corev1.Pod{}
	for _, n := range []string{"a", "b"} {
		_, err := admin.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n}}, create)
		must(err)
		_, err = admin.CoreV1().ServiceAccounts("x").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "of-" + n}}, create)
		must(err)
		for _, what := range []string{"volume-", "env-", "pull-"} {
			_, err = admin.CoreV1().Secrets("x").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: what + n}}, create)
			must(err)
		}
		_, err = admin.CoreV1().ConfigMaps("x").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "config-" + n}}, create)
		must(err)
		pods[n], err = admin.CoreV1().Pods("x").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pod-" + n}, Spec: corev1.PodSpec{
			NodeName: n, ServiceAccountName: "of-" + n, ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull-" + n}},
			Containers: []corev1.Container{{Name: "c", Image: "i", Env: []corev1.EnvVar{{Name: "E", ValueFrom: &corev1.EnvVarSource{
				SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "env-" + n}, Key: "k"}}}},
				EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "config-" + n}}}}}},
			Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "volume-" + n}}},
				{Name: "d", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "claim-" + n}}}},
		}}, create)
		must(err)
		_, err = admin.CoreV1().PersistentVolumes().Create(ctx, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "volume-of-" + n}, Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{corev1.ResourceStorage: quantity("1Gi")}, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			ClaimRef: &corev1.ObjectReference{Namespace: "x", Name: "claim-" + n},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "d.example", VolumeHandle: "h",
				NodeStageSecretRef: &corev1.SecretReference{Namespace: "x", Name: "stage-" + n}}},
		}}, create)
		must(err)
		_, err = admin.CoreV1().Secrets("x").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "stage-" + n}}, create)
		must(err)
	}
	return admin, a, pods
}

func TestReads(t *testing.T) {
	admin, a, _ := world(t)
	core := a.CoreV1()
	named := func(name string) metav1.ListOptions {
		return metav1.ListOptions{FieldSelector: "metadata.name=" + name}
	}
	for name, c := range map[string]struct {
		ask func(context.Context, string) error
	}{
		"secret of a volume": {func(ctx context.Context, n string) error {
			_, err := core.Secrets("x").Get(ctx, "volume-"+n, get)
			return err
		}},
		"secret of a variable": {func(ctx context.Context, n string) error {
			_, err := core.Secrets("x").Get(ctx, "env-"+n, get)
			return err
		}},
		"secret of pulling": {func(ctx context.Context, n string) error {
			_, err := core.Secrets("x").Get(ctx, "pull-"+n, get)
			return err
		}},
		"secret of staging": {func(ctx context.Context, n string) error {
			_, err := core.Secrets("x").Get(ctx, "stage-"+n, get)
			return err
		}},
		"list of one secret": {func(ctx context.Context, n string) error {
			_, err := core.Secrets("x").List(ctx, named("env-"+n))
			return err
		}},
		"config map": {func(ctx context.Context, n string) error {
			_, err := core.ConfigMaps("x").Get(ctx, "config-"+n, get)
			return err
		}},
		"volume": {func(ctx context.Context, n string) error {
			_, err := core.PersistentVolumes().Get(ctx, "volume-of-"+n, get)
			return err
		}},
		"account": {func(ctx context.Context, n string) error {
			_, err := core.ServiceAccounts("x").Get(ctx, "of-"+n, get)
			return err
		}},
		"pod": {func(ctx context.Context, n string) error {
			_, err := core.Pods("x").Get(ctx, "pod-"+n, get)
			return err
		}},
		"pods": {func(ctx context.Context, n string) error {
			_, err := core.Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + n})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := c.ask(t.Context(), "a"); err != nil {
				t.Errorf("of its own: %v", err)
			}
			if err := c.ask(t.Context(), "b"); !apierrors.IsForbidden(err) {
				t.Errorf("of another node: %v, want forbidden", err)
			}
		})
	}
	if _, err := core.Secrets("x").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("list of all secrets: %v, want forbidden", err)
	}
	const want = `secrets "env-b" is forbidden: User "system:node:a" cannot get resource "secrets" in API group "" in the namespace "x": no relationship found between node 'a' and this object`
	if _, err := core.Secrets("x").Get(t.Context(), "env-b", get); err == nil || err.Error() != want {
		t.Errorf("message %v, want %s", err, want)
	}
	// With the pod goes the permission.
	zero := int64(0)
	if err := admin.CoreV1().Pods("x").Delete(t.Context(), "pod-a", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	if _, err := core.Secrets("x").Get(t.Context(), "env-a", get); !apierrors.IsForbidden(err) {
		t.Errorf("after the pod is gone: %v, want forbidden", err)
	}
}

func TestWrites(t *testing.T) {
	admin, a, pods := world(t)
	core := a.CoreV1()
	ctx := t.Context()
	token := func(account string, ref *authenticationv1.BoundObjectReference) error {
		_, err := core.ServiceAccounts("x").CreateToken(ctx, account, &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: ref}}, create)
		return err
	}
	bound := func(p *corev1.Pod) *authenticationv1.BoundObjectReference {
		return &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID}
	}
	label := func(node, label string) error {
		_, err := core.Nodes().Patch(ctx, node, types.MergePatchType, []byte(`{"metadata":{"labels":{"`+label+`":"v"}}}`), metav1.PatchOptions{})
		return err
	}
	status := func(p *corev1.Pod) error {
		_, err := core.Pods("x").Patch(ctx, p.Name, types.MergePatchType, []byte(`{"status":{"phase":"Running"}}`), metav1.PatchOptions{}, "status")
		return err
	}
	lease := func(ns, name string) error {
		_, err := a.CoordinationV1().Leases(ns).Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}}, create)
		return err
	}
	mirror := func(change func(*corev1.Pod)) error {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "static", Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "h"}},
			Spec: corev1.PodSpec{NodeName: "a", Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
		change(p)
		_, err := core.Pods("x").Create(ctx, p, create)
		return err
	}
	if _, err := admin.CoreV1().Nodes().Patch(ctx, "a", types.MergePatchType, []byte(`{"spec":{"taints":[{"key":"k","effect":"NoSchedule"}]}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	_, taints := core.Nodes().Patch(ctx, "a", types.MergePatchType, []byte(`{"spec":{"taints":[]}}`), metav1.PatchOptions{})
	_, makeOther := core.Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "c"}}, create)
	nobody := func(*corev1.Pod) {}
	for _, c := range []struct {
		what string
		err  error
		want string // "": it succeeds
	}{
		{"token for its pod", token("of-a", bound(pods["a"])), ""},
		{"token for another's pod", token("of-b", bound(pods["b"])), "no relationship found between node 'a'"},
		{"token bound to nothing", token("of-a", nil), "node requested token not bound to a pod"},
		{"label", label("a", "example.com/x"), ""},
		{"zone", label("a", "topology.kubernetes.io/zone"), ""},
		{"restricted label", label("a", "node-restriction.kubernetes.io/x"), `is not allowed to modify labels: node-restriction.kubernetes.io/x`},
		{"role label", label("a", "node-role.kubernetes.io/control-plane"), `is not allowed to modify labels: node-role.kubernetes.io/control-plane`},
		{"another node", label("b", "example.com/x"), "forbidden"},
		{"taints", taints, `node "a" is not allowed to modify taints`},
		{"create of another node", makeOther, `node "a" is not allowed to modify node "c"`},
		{"status of its pod", status(pods["a"]), ""},
		{"status of another's pod", status(pods["b"]), `node "a" can only update pod status for pods with spec.nodeName set to itself`},
		{"its lease", lease(corev1.NamespaceNodeLease, "a"), ""},
		{"another's lease", lease(corev1.NamespaceNodeLease, "b"), "can only access node lease with the same name"},
		{"lease elsewhere", lease("x", "a"), `can only access leases in the "kube-node-lease" system namespace`},
		{"mirror pod of another", mirror(func(p *corev1.Pod) { p.Spec.NodeName = "b" }), `node "a" can only create pods with spec.nodeName set to itself`},
		{"pod that is no mirror", mirror(func(p *corev1.Pod) { p.Annotations, p.Spec.ServiceAccountName = nil, "of-a" }), `node "a" can only create mirror pods`},
		{"mirror pod with a secret", mirror(func(p *corev1.Pod) {
			p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "env-b"}}
		}), "can not create pods that reference secrets"},
		{"mirror pod", mirror(nobody), ""},
		{"delete of its pod", core.Pods("x").Delete(ctx, "pod-a", metav1.DeleteOptions{}), ""},
		{"delete of another's pod", core.Pods("x").Delete(ctx, "pod-b", metav1.DeleteOptions{}), `node "a" can only delete pods with spec.nodeName set to itself`},
	} {
		switch {
		case c.want == "" && c.err != nil:
			t.Errorf("%s: %v", c.what, c.err)
		case c.want != "" && (!apierrors.IsForbidden(c.err) || !strings.Contains(c.err.Error(), c.want)):
			t.Errorf("%s: %v, want forbidden: %s", c.what, c.err, c.want)
		}
	}
}

func quantity(s string) resource.Quantity { return resource.MustParse(s) }
