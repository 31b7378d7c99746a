package bootstrap

import (
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/apiserver/auth"
)

// extensionAuthentication is where extension servers read whom to believe.
const extensionAuthentication = "extension-apiserver-authentication"

// extensionServers returns what extension servers need to recognise users, and the
// role that lets them read it.
func extensionServers(c Cluster) []entry {
	if len(c.ClientCA) == 0 && len(c.FrontProxyCA) == 0 {
		return nil
	}
	data := map[string]string{}
	if len(c.ClientCA) > 0 {
		data["client-ca-file"] = string(c.ClientCA)
	}
	if len(c.FrontProxyCA) > 0 {
		data["requestheader-client-ca-file"] = string(c.FrontProxyCA)
		data["requestheader-allowed-names"] = `["` + auth.FrontProxyName + `"]`
		data["requestheader-username-headers"] = `["X-Remote-User"]`
		data["requestheader-uid-headers"] = `["X-Remote-Uid"]`
		data["requestheader-group-headers"] = `["X-Remote-Group"]`
		data["requestheader-extra-headers-prefix"] = `["X-Remote-Extra-"]`
	}
	return []entry{
		{corev1.SchemeGroupVersion.WithResource("configmaps"), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: extensionAuthentication, Namespace: metav1.NamespaceSystem}, Data: data}, true},
		{rbacv1.SchemeGroupVersion.WithResource("roles"), &rbacv1.Role{
			ObjectMeta: metav1.ObjectMeta{Name: extensionAuthentication + "-reader", Namespace: metav1.NamespaceSystem,
				Labels: map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"}, Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"}},
			Rules: []rbacv1.PolicyRule{{Verbs: []string{"get", "list", "watch"}, APIGroups: []string{""}, Resources: []string{"configmaps"},
				ResourceNames: []string{extensionAuthentication}}}}, false},
	}
}
