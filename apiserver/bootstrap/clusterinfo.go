package bootstrap

import (
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/auth"
)

const (
	clusterInfoName = "cluster-info"
	clusterInfoKey  = "kubeconfig"
	clusterInfoRole = "kubeadm:bootstrap-signer-clusterinfo"
	clusterInfoPath = "/api/v1/namespaces/" + metav1.NamespacePublic + "/configmaps/" + clusterInfoName
)

// PublicPath tells whether a path is answered without credentials: where machines
// learn which cluster they join, before they have any. What they read there is
// signed with their bootstrap token.
func PublicPath(path string) bool { return path == clusterInfoPath }

// clusterInfo is what machines read before they join, and the role by which
// everybody may.
func clusterInfo(c Cluster) []entry {
	if c.ClusterInfo == "" {
		return nil
	}
	meta := metav1.ObjectMeta{Name: clusterInfoRole, Namespace: metav1.NamespacePublic}
	return []entry{
		{corev1.SchemeGroupVersion.WithResource("configmaps"), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: clusterInfoName, Namespace: metav1.NamespacePublic}, Data: map[string]string{clusterInfoKey: c.ClusterInfo}}, true},
		{rbacv1.SchemeGroupVersion.WithResource("roles"), &rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
			{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{clusterInfoName}}}}, false},
		{rbacv1.SchemeGroupVersion.WithResource("rolebindings"), &rbacv1.RoleBinding{ObjectMeta: meta,
			RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: clusterInfoRole},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: auth.UserAnonymous}}}, false},
	}
}

// renewedInfo keeps the signatures, which the controller renews itself.
func renewedInfo(old, want *corev1.ConfigMap) kind.Object {
	if old.Data[clusterInfoKey] == want.Data[clusterInfoKey] {
		return nil
	}
	next := old.DeepCopy()
	if next.Data == nil {
		next.Data = map[string]string{}
	}
	next.Data[clusterInfoKey] = want.Data[clusterInfoKey]
	return next
}
