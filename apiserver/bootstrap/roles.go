package bootstrap

import (
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"knarr.dev/knarr/apiserver/auth"
)

var (
	readVerbs  = []string{"get", "list", "watch"}
	writeVerbs = []string{"create", "delete", "deletecollection", "patch", "update"}
	all        = []string{"*"}
	apiPaths   = []string{"/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz", "/version", "/version/"}
)

func rule(verbs []string, group string, resources ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: verbs, APIGroups: []string{group}, Resources: resources}
}

// readable and writable are what view sees and edit changes in a namespace.
var (
	readable = []rbacv1.PolicyRule{
		rule(readVerbs, "", "configmaps", "endpoints", "persistentvolumeclaims", "persistentvolumeclaims/status", "pods", "replicationcontrollers", "replicationcontrollers/scale", "serviceaccounts", "services", "services/status",
			"bindings", "events", "limitranges", "namespaces/status", "pods/log", "pods/status", "replicationcontrollers/status", "resourcequotas", "resourcequotas/status", "namespaces"),
		rule(readVerbs, "discovery.k8s.io", "endpointslices"),
		rule(readVerbs, "apps", "controllerrevisions", "daemonsets", "daemonsets/status", "deployments", "deployments/scale", "deployments/status", "replicasets", "replicasets/scale", "replicasets/status", "statefulsets", "statefulsets/scale", "statefulsets/status"),
		rule(readVerbs, "autoscaling", "horizontalpodautoscalers", "horizontalpodautoscalers/status"),
		rule(readVerbs, "batch", "cronjobs", "cronjobs/status", "jobs", "jobs/status"),
		rule(readVerbs, "policy", "poddisruptionbudgets", "poddisruptionbudgets/status"),
		rule(readVerbs, "networking.k8s.io", "ingresses", "ingresses/status", "networkpolicies"),
	}
	writable = []rbacv1.PolicyRule{
		rule(readVerbs, "", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy"),
		rule([]string{"impersonate"}, "", "serviceaccounts"),
		rule(writeVerbs, "", "pods", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "configmaps", "events", "persistentvolumeclaims", "replicationcontrollers", "replicationcontrollers/scale", "secrets", "serviceaccounts", "services", "services/proxy"),
		rule([]string{"create"}, "", "pods/eviction", "serviceaccounts/token"),
		rule(writeVerbs, "apps", "daemonsets", "deployments", "deployments/rollback", "deployments/scale", "replicasets", "replicasets/scale", "statefulsets", "statefulsets/scale"),
		rule(writeVerbs, "autoscaling", "horizontalpodautoscalers"),
		rule(writeVerbs, "batch", "cronjobs", "jobs"),
		rule(writeVerbs, "policy", "poddisruptionbudgets"),
		rule(writeVerbs, "networking.k8s.io", "ingresses", "networkpolicies"),
		rule(append([]string{}, append(readVerbs, writeVerbs...)...), "coordination.k8s.io", "leases"),
	}
	administrable = []rbacv1.PolicyRule{
		rule([]string{"create"}, "authorization.k8s.io", "localsubjectaccessreviews"),
		rule(append(append([]string{}, readVerbs...), writeVerbs...), "rbac.authorization.k8s.io", "rolebindings", "roles"),
	}
)

func join(lists ...[]rbacv1.PolicyRule) []rbacv1.PolicyRule {
	var out []rbacv1.PolicyRule
	for _, l := range lists {
		out = append(out, l...)
	}
	return out
}

type grant struct {
	role     string
	rules    []rbacv1.PolicyRule
	subjects []rbacv1.Subject // of the binding of the same name; none: no binding
}

func group(names ...string) []rbacv1.Subject {
	var out []rbacv1.Subject
	for _, n := range names {
		out = append(out, rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: n})
	}
	return out
}

func user(name string) []rbacv1.Subject {
	return []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: name}}
}

// grants are Kubernetes' default cluster roles, and those of knarr's own parts.
func grants() []grant {
	return []grant{
		{"cluster-admin", []rbacv1.PolicyRule{rule(all, "*", "*"), {Verbs: all, NonResourceURLs: all}}, group(auth.GroupMasters)},
		{"admin", join(readable, writable, administrable), nil},
		{"edit", join(readable, writable), nil},
		{"view", readable, nil},
		{"system:discovery", []rbacv1.PolicyRule{{Verbs: []string{"get"}, NonResourceURLs: apiPaths}}, group(auth.GroupAuthenticated)},
		{"system:public-info-viewer", []rbacv1.PolicyRule{{Verbs: []string{"get"}, NonResourceURLs: []string{"/healthz", "/livez", "/readyz", "/version", "/version/"}}}, group(auth.GroupAuthenticated, "system:unauthenticated")},
		{"system:basic-user", []rbacv1.PolicyRule{
			rule([]string{"create"}, "authorization.k8s.io", "selfsubjectaccessreviews", "selfsubjectrulesreviews"),
			rule([]string{"create"}, "authentication.k8s.io", "selfsubjectreviews"),
		}, group(auth.GroupAuthenticated)},
		{"system:auth-delegator", []rbacv1.PolicyRule{
			rule([]string{"create"}, "authentication.k8s.io", "tokenreviews"), rule([]string{"create"}, "authorization.k8s.io", "subjectaccessreviews"),
		}, nil},
		{"system:monitoring", []rbacv1.PolicyRule{{Verbs: []string{"get"}, NonResourceURLs: []string{"/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/metrics/slis", "/readyz", "/readyz/*"}}}, group("system:monitoring")},
		{"system:kube-controller-manager", []rbacv1.PolicyRule{rule(all, "*", "*")}, user("system:kube-controller-manager")},
		{"system:kube-scheduler", []rbacv1.PolicyRule{
			rule(readVerbs, "", "nodes", "namespaces", "pods", "persistentvolumes", "persistentvolumeclaims", "replicationcontrollers", "services"),
			rule([]string{"create"}, "", "pods/binding", "bindings"), rule([]string{"patch", "update"}, "", "pods/status"), rule([]string{"delete"}, "", "pods"),
			rule([]string{"create", "patch", "update"}, "", "events"), rule([]string{"create", "patch", "update"}, "events.k8s.io", "events"),
			rule(readVerbs, "apps", "replicasets", "statefulsets"), rule(readVerbs, "policy", "poddisruptionbudgets"),
			rule(readVerbs, "storage.k8s.io", "storageclasses", "csinodes", "csidrivers", "csistoragecapacities"),
		}, user("system:kube-scheduler")},
		{"system:node", []rbacv1.PolicyRule{
			rule([]string{"create", "get", "list", "patch", "update", "watch", "delete"}, "", "nodes", "nodes/status"),
			rule(append(append([]string{}, readVerbs...), "create", "delete"), "", "pods"), rule([]string{"patch", "update"}, "", "pods/status"), rule([]string{"create"}, "", "pods/eviction"),
			rule(readVerbs, "", "services", "configmaps", "secrets", "persistentvolumeclaims", "persistentvolumes", "serviceaccounts", "namespaces", "endpoints"),
			rule([]string{"create"}, "", "serviceaccounts/token"), rule([]string{"create", "patch", "update"}, "", "events"),
			rule(readVerbs, "discovery.k8s.io", "endpointslices"), rule([]string{"create", "delete", "get", "patch", "update", "list", "watch"}, "coordination.k8s.io", "leases"),
			rule(readVerbs, "node.k8s.io", "runtimeclasses"), rule(readVerbs, "storage.k8s.io", "csidrivers", "csinodes", "volumeattachments"),
			rule([]string{"create"}, "authentication.k8s.io", "tokenreviews"), rule([]string{"create"}, "authorization.k8s.io", "subjectaccessreviews"),
		}, group(auth.GroupNodes)},
	}
}

func roles() []entry {
	gv := rbacv1.SchemeGroupVersion
	labels := map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"}
	notes := map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"}
	var out []entry
	for _, g := range grants() {
		meta := metav1.ObjectMeta{Name: g.role, Labels: labels, Annotations: notes}
		out = append(out, entry{gv.WithResource("clusterroles"), &rbacv1.ClusterRole{ObjectMeta: meta, Rules: g.rules}, false})
		if g.subjects != nil {
			out = append(out, entry{gv.WithResource("clusterrolebindings"), &rbacv1.ClusterRoleBinding{ObjectMeta: *meta.DeepCopy(), Subjects: g.subjects,
				RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: g.role}}, false})
		}
	}
	return out
}
