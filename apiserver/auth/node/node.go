// Package node is Kubernetes' Node authorizer: what the agents of nodes may do.
// A node, system:node:NAME of the group system:nodes, reads only those secrets,
// config maps, claims and volumes that the pods bound to it name, asks for tokens
// of their service accounts only, and touches only its own Node, lease, CSINode
// and pods. What a node may do with these, beyond authorization, is the admission
// step NodeRestriction.
package node

import (
	"context"
	"fmt"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/fields"

	"knarr.dev/knarr/apiserver/auth"
)

// Identify returns the name of the node behind a user. isNode tells a member of
// the nodes' group; name is empty if it names no node.
func Identify(u *authenticationv1.UserInfo) (name string, isNode bool) {
	if !slices.Contains(u.Groups, auth.GroupNodes) {
		return "", false
	}
	name, ok := strings.CutPrefix(u.Username, auth.UserNode)
	if !ok {
		return "", false
	}
	return name, true
}

// Graph tells what belongs to a node.
type Graph interface {
	// Names tells whether a pod of the node names the object. resource is secrets,
	// configmaps, persistentvolumeclaims, persistentvolumes or serviceaccounts.
	Names(node, resource, namespace, name string) bool
	// Pod returns a pod, or nil.
	Pod(namespace, name string) *corev1.Pod
	// Attachment returns a volume's attachment to a node, or nil.
	Attachment(name string) *storagev1.VolumeAttachment
}

// Authorizer decides on the actions of nodes; it has no opinion on other users.
type Authorizer struct {
	Graph Graph
	rules []rbacv1.PolicyRule
}

// New returns an authorizer that knows nodes' pods by the graph.
func New(g Graph) *Authorizer { return &Authorizer{Graph: g, rules: rules()} }

// Authorize implements auth.Authorizer.
func (n *Authorizer) Authorize(_ context.Context, a *auth.Action) (auth.Decision, string) {
	node, ok := Identify(a.User)
	if !ok {
		return auth.NoOpinion, ""
	}
	if node == "" {
		return auth.NoOpinion, fmt.Sprintf("unknown node for user %q", a.User.Username)
	}
	if a.IsResource() {
		switch a.Group + "/" + a.Resource {
		case "/secrets", "/configmaps":
			return n.readOne(a, node)
		case "/persistentvolumeclaims":
			if a.Subresource == "status" {
				return n.named(a, node, "get", "update", "patch")
			}
			return n.getOne(a, node)
		case "/persistentvolumes", "resource.k8s.io/resourceclaims":
			return n.getOne(a, node)
		case "/serviceaccounts":
			return n.account(a, node)
		case "storage.k8s.io/volumeattachments":
			return n.attachment(a, node)
		case "coordination.k8s.io/leases":
			return ownLease(a, node)
		case "storage.k8s.io/csinodes":
			return own(a, node, "CSINode")
		case "/nodes":
			return ownNode(a, node)
		case "/pods":
			return n.pods(a, node)
		}
	}
	if slices.ContainsFunc(n.rules, func(r rbacv1.PolicyRule) bool { return auth.Permits(&r, a) }) {
		return auth.Permitted, ""
	}
	return auth.NoOpinion, ""
}

const unrelated = "no relationship found between node '%s' and this object"

func no(format string, args ...any) (auth.Decision, string) {
	return auth.NoOpinion, fmt.Sprintf(format, args...)
}

// readOne: get, and list or watch of one object by its name.
func (n *Authorizer) readOne(a *auth.Action, node string) (auth.Decision, string) {
	switch a.Verb {
	case "get", "list", "watch":
	default:
		return no("can only read resources of this type")
	}
	if a.Subresource != "" {
		return no("cannot read subresource")
	}
	if a.Namespace == "" {
		return no("can only read namespaced object of this type")
	}
	return n.named(a, node, "get", "list", "watch")
}

func (n *Authorizer) getOne(a *auth.Action, node string) (auth.Decision, string) {
	if a.Verb != "get" {
		return no("can only get individual resources of this type")
	}
	if a.Subresource != "" {
		return no("cannot get subresource")
	}
	return n.named(a, node, "get")
}

// named permits the verbs on objects that the node's pods name.
func (n *Authorizer) named(a *auth.Action, node string, verbs ...string) (auth.Decision, string) {
	switch {
	case !slices.Contains(verbs, a.Verb):
		return no("can only %s objects of this type", strings.Join(verbs, ", "))
	case a.Name == "":
		return no("No Object name found")
	case !n.Graph.Names(node, a.Resource, a.Namespace, a.Name):
		return no(unrelated, node)
	}
	return auth.Permitted, ""
}

func (n *Authorizer) account(a *auth.Action, node string) (auth.Decision, string) {
	if a.Subresource == "token" {
		if a.Verb != "create" || a.Name == "" {
			return no("can only create tokens for individual service accounts")
		}
		return n.named(a, node, "create")
	}
	return n.getOne(a, node)
}

func (n *Authorizer) attachment(a *auth.Action, node string) (auth.Decision, string) {
	if a.Verb != "get" || a.Subresource != "" || a.Name == "" {
		return no("can only get individual resources of this type")
	}
	if v := n.Graph.Attachment(a.Name); v == nil || v.Spec.NodeName != node {
		return no(unrelated, node)
	}
	return auth.Permitted, ""
}

func ownLease(a *auth.Action, node string) (auth.Decision, string) {
	if a.Namespace != corev1.NamespaceNodeLease {
		return no("can only access leases in the %q system namespace", corev1.NamespaceNodeLease)
	}
	return own(a, node, "node lease")
}

// own permits all that is done to the one object that has the node's name.
func own(a *auth.Action, node, what string) (auth.Decision, string) {
	switch a.Verb {
	case "get", "create", "update", "patch", "delete":
	default:
		return no("can only get, create, update, patch, or delete a %s", what)
	}
	if a.Subresource != "" {
		return no("cannot authorize %s subresources", what)
	}
	// A create has its name in the body: admission looks at it.
	if a.Name != node && (a.Verb != "create" || a.Name != "") {
		return no("can only access %s with the same name as the requesting node", what)
	}
	return auth.Permitted, ""
}

func ownNode(a *auth.Action, node string) (auth.Decision, string) {
	switch {
	case a.Subresource == "" && a.Verb == "create" && (a.Name == "" || a.Name == node): // admission sees the name
		return auth.Permitted, ""
	case a.Subresource == "" && slices.Contains([]string{"get", "list", "watch", "update", "patch"}, a.Verb),
		a.Subresource == "status" && slices.Contains([]string{"update", "patch"}, a.Verb):
		if a.Name == node {
			return auth.Permitted, ""
		}
		return no("node '%s' cannot read all nodes, only its own Node object", node)
	}
	return auth.NoOpinion, ""
}

func (n *Authorizer) pods(a *auth.Action, node string) (auth.Decision, string) {
	switch {
	case a.Verb == "create" && a.Subresource == "", // mirror pods: admission sees which
		a.Verb == "create" && a.Subresource == "eviction",
		a.Verb == "delete" && a.Subresource == "",
		(a.Verb == "update" || a.Verb == "patch") && a.Subresource == "status":
		return auth.Permitted, ""
	case (a.Verb == "list" || a.Verb == "watch") && a.Subresource == "":
		if sel, err := fields.ParseSelector(a.FieldSelector); err == nil {
			if on, ok := sel.RequiresExactMatch("spec.nodeName"); ok && on == node {
				return auth.Permitted, ""
			}
		}
		return no("can only list/watch pods with spec.nodeName field selector")
	case a.Verb == "get" && a.Subresource == "":
		if p := n.Graph.Pod(a.Namespace, a.Name); p == nil || p.Spec.NodeName != node {
			return no(unrelated, node)
		}
		return auth.Permitted, ""
	}
	return auth.NoOpinion, ""
}

// rules are what every node may do, whichever objects its pods name.
func rules() []rbacv1.PolicyRule {
	read := []string{"get", "list", "watch"}
	r := func(group string, verbs []string, resources ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{Verbs: verbs, APIGroups: []string{group}, Resources: resources}
	}
	return []rbacv1.PolicyRule{
		r("authentication.k8s.io", []string{"create"}, "tokenreviews"),
		r("authorization.k8s.io", []string{"create"}, "subjectaccessreviews", "localsubjectaccessreviews"),
		r("", read, "services"),
		r("", []string{"create", "update", "patch"}, "events"),
		r("events.k8s.io", []string{"create", "update", "patch"}, "events"),
		r("", []string{"get"}, "endpoints"),
		r("certificates.k8s.io", []string{"create", "get", "list", "watch"}, "certificatesigningrequests"),
		r("certificates.k8s.io", read, "clustertrustbundles"),
		r("storage.k8s.io", read, "csidrivers"),
		r("node.k8s.io", read, "runtimeclasses"),
	}
}
