package bootstrap

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
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
	// from, if set, makes the rules those of all roles labelled aggregate-to-<from>;
	// to labels this role so
	from, to string
}

const aggregateTo = "rbac.authorization.k8s.io/aggregate-to-"

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

// grants are Kubernetes' default cluster roles, and those of knarr's own parts;
// controllers are the rules that the controllers declare.
func grants(controllers []rbacv1.PolicyRule) []grant {
	return []grant{
		{role: "cluster-admin", rules: []rbacv1.PolicyRule{rule(all, "*", "*"), {Verbs: all, NonResourceURLs: all}}, subjects: group(auth.GroupMasters)},
		{role: "admin", rules: join(readable, writable, administrable), from: "admin"},
		{role: "edit", rules: join(readable, writable), from: "edit", to: "admin"},
		{role: "view", rules: readable, from: "view", to: "edit"},
		{role: "system:aggregate-to-admin", rules: administrable, to: "admin"},
		{role: "system:aggregate-to-edit", rules: writable, to: "edit"},
		{role: "system:aggregate-to-view", rules: readable, to: "view"},
		{role: "system:aggregated-metrics-reader", rules: []rbacv1.PolicyRule{rule(readVerbs, "metrics.k8s.io", "pods", "nodes")}, to: "view"},
		{role: "system:discovery", rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}, NonResourceURLs: apiPaths}}, subjects: group(auth.GroupAuthenticated)},
		{role: "system:public-info-viewer", rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}, NonResourceURLs: []string{"/healthz", "/livez", "/readyz", "/version", "/version/"}}}, subjects: group(auth.GroupAuthenticated, "system:unauthenticated")},
		{role: "system:basic-user", rules: []rbacv1.PolicyRule{
			rule([]string{"create"}, "authorization.k8s.io", "selfsubjectaccessreviews", "selfsubjectrulesreviews"),
			rule([]string{"create"}, "authentication.k8s.io", "selfsubjectreviews"),
		}, subjects: group(auth.GroupAuthenticated)},
		{role: "system:auth-delegator", rules: []rbacv1.PolicyRule{
			rule([]string{"create"}, "authentication.k8s.io", "tokenreviews"), rule([]string{"create"}, "authorization.k8s.io", "subjectaccessreviews"),
		}},
		{role: "system:monitoring", rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}, NonResourceURLs: []string{"/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/metrics/slis", "/readyz", "/readyz/*"}}}, subjects: group("system:monitoring")},
		{role: "system:kube-controller-manager", rules: controllers, subjects: user("system:kube-controller-manager")},
		{role: "system:node-proxier", rules: []rbacv1.PolicyRule{
			rule(readVerbs, "", "services", "endpoints", "nodes"), rule(readVerbs, "discovery.k8s.io", "endpointslices"),
			rule(readVerbs, "networking.k8s.io", "servicecidrs"), rule([]string{"create", "patch", "update"}, "", "events"), rule([]string{"create", "patch", "update"}, "events.k8s.io", "events"),
		}, subjects: user("system:kube-proxy")},
		{role: "system:node-problem-detector", rules: []rbacv1.PolicyRule{
			rule([]string{"get"}, "", "nodes"), rule([]string{"patch"}, "", "nodes/status"), rule([]string{"create", "patch", "update"}, "", "events"), rule([]string{"create", "patch", "update"}, "events.k8s.io", "events"),
		}},
		{role: "system:persistent-volume-provisioner", rules: []rbacv1.PolicyRule{
			rule([]string{"create", "delete", "get", "list", "watch"}, "", "persistentvolumes"), rule([]string{"get", "list", "update", "watch"}, "", "persistentvolumeclaims"),
			rule(readVerbs, "storage.k8s.io", "storageclasses"), rule([]string{"watch"}, "", "events"), rule([]string{"create", "patch", "update"}, "", "events"), rule([]string{"create", "patch", "update"}, "events.k8s.io", "events"),
		}},
		{role: "system:kube-dns", rules: []rbacv1.PolicyRule{rule([]string{"list", "watch"}, "", "endpoints", "services")}},
		{role: "system:kubelet-api-admin", rules: []rbacv1.PolicyRule{
			rule(readVerbs, "", "nodes"), rule([]string{"proxy"}, "", "nodes"), rule(all, "", "nodes/log", "nodes/metrics", "nodes/proxy", "nodes/stats"),
		}},
		{role: "system:service-account-issuer-discovery", rules: []rbacv1.PolicyRule{
			{Verbs: []string{"get"}, NonResourceURLs: []string{"/.well-known/openid-configuration", "/.well-known/openid-configuration/", "/openid/v1/jwks", "/openid/v1/jwks/"}},
		}, subjects: group(auth.GroupServiceAccounts)},
		{role: "system:kube-scheduler", rules: []rbacv1.PolicyRule{
			rule(readVerbs, "", "nodes", "namespaces", "pods", "persistentvolumes", "persistentvolumeclaims", "replicationcontrollers", "services"),
			rule([]string{"create"}, "", "pods/binding", "bindings"), rule([]string{"patch", "update"}, "", "pods/status"), rule([]string{"delete"}, "", "pods"),
			rule([]string{"create", "patch", "update"}, "", "events"), rule([]string{"create", "patch", "update"}, "events.k8s.io", "events"),
			rule(readVerbs, "apps", "replicasets", "statefulsets"), rule(readVerbs, "policy", "poddisruptionbudgets"),
			rule(readVerbs, "storage.k8s.io", "storageclasses", "csinodes", "csidrivers", "csistoragecapacities"),
		}, subjects: user("system:kube-scheduler")},
		{role: "system:node-bootstrapper", rules: []rbacv1.PolicyRule{rule([]string{"create", "get", "list", "watch"}, "certificates.k8s.io", "certificatesigningrequests")}},
		{role: "system:certificates.k8s.io:certificatesigningrequests:nodeclient", rules: []rbacv1.PolicyRule{rule([]string{"create"}, "certificates.k8s.io", "certificatesigningrequests/nodeclient")}},
		{role: "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", rules: []rbacv1.PolicyRule{rule([]string{"create"}, "certificates.k8s.io", "certificatesigningrequests/selfnodeclient")}},
		approver("kube-apiserver-client"), approver("kube-apiserver-client-kubelet"), approver("kubelet-serving"), approver("legacy-unknown"),
		{role: "system:node", rules: []rbacv1.PolicyRule{
			rule([]string{"create", "get", "list", "patch", "update", "watch", "delete"}, "", "nodes", "nodes/status"),
			rule(append(append([]string{}, readVerbs...), "create", "delete"), "", "pods"), rule([]string{"patch", "update"}, "", "pods/status"), rule([]string{"create"}, "", "pods/eviction"),
			rule(readVerbs, "", "services", "configmaps", "secrets", "persistentvolumeclaims", "persistentvolumes", "serviceaccounts", "namespaces", "endpoints"),
			rule([]string{"create"}, "", "serviceaccounts/token"), rule([]string{"create", "patch", "update"}, "", "events"),
			rule(readVerbs, "discovery.k8s.io", "endpointslices"), rule([]string{"create", "delete", "get", "patch", "update", "list", "watch"}, "coordination.k8s.io", "leases"),
			rule(readVerbs, "node.k8s.io", "runtimeclasses"), rule(readVerbs, "storage.k8s.io", "csidrivers", "csinodes", "volumeattachments"),
			rule([]string{"create"}, "authentication.k8s.io", "tokenreviews"), rule([]string{"create"}, "authorization.k8s.io", "subjectaccessreviews"),
		}, subjects: []rbacv1.Subject{}}, // bound to nobody: the Node authorizer permits what concerns a node
		// The part of a node that serves Services and drains pods sees all of these.
		{role: "system:knarr:node-network", rules: []rbacv1.PolicyRule{
			rule(readVerbs, "", "nodes", "services", "endpoints"), rule(readVerbs, "discovery.k8s.io", "endpointslices"), rule(readVerbs, "networking.k8s.io", "servicecidrs"),
		}, subjects: group(auth.GroupNodes)},
	}
}

// approver approves the requests of one of Kubernetes' signers.
func approver(signer string) grant {
	r := rule([]string{"approve"}, "certificates.k8s.io", "signers")
	r.ResourceNames = []string{"kubernetes.io/" + signer}
	return grant{role: "system:certificates.k8s.io:" + signer + "-approver", rules: []rbacv1.PolicyRule{r}}
}

func roles(controllers []rbacv1.PolicyRule) []entry {
	gv := rbacv1.SchemeGroupVersion
	var out []entry
	for _, g := range grants(controllers) {
		meta := func() metav1.ObjectMeta {
			return metav1.ObjectMeta{Name: g.role, Labels: map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"},
				Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"}}
		}
		role := &rbacv1.ClusterRole{ObjectMeta: meta(), Rules: g.rules}
		if g.to != "" {
			role.Labels[aggregateTo+g.to] = "true"
		}
		if g.from != "" {
			role.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{aggregateTo + g.from: "true"}}}}
		}
		out = append(out, entry{gv.WithResource("clusterroles"), role, g.from == ""})
		if g.subjects != nil {
			out = append(out, entry{gv.WithResource("clusterrolebindings"), &rbacv1.ClusterRoleBinding{ObjectMeta: meta(), Subjects: g.subjects,
				RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: g.role}}, g.role == "system:node"})
		}
	}
	return out
}

// nodeLeases lets nodes read each other's leases: on them they confirm what they no
// longer send traffic to.
func nodeLeases() []entry {
	const name = "system:knarr:node-leases"
	meta := metav1.ObjectMeta{Name: name, Namespace: corev1.NamespaceNodeLease, Labels: map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"},
		Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"}}
	gv := rbacv1.SchemeGroupVersion
	return []entry{
		{gv.WithResource("roles"), &rbacv1.Role{ObjectMeta: *meta.DeepCopy(), Rules: []rbacv1.PolicyRule{rule(readVerbs, "coordination.k8s.io", "leases")}}, false},
		{gv.WithResource("rolebindings"), &rbacv1.RoleBinding{ObjectMeta: meta, Subjects: group(auth.GroupNodes),
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name}}, false},
	}
}

// missing returns the rules of want that have lacks: an administrator's additions
// to a default role stay.
func missing(have, want []rbacv1.PolicyRule) []rbacv1.PolicyRule {
	var out []rbacv1.PolicyRule
	for _, w := range want {
		if !slices.ContainsFunc(have, func(h rbacv1.PolicyRule) bool { return equality.Semantic.DeepEqual(h, w) }) {
			out = append(out, w)
		}
	}
	return out
}
