package cmd

import (
	"net/http"
	"strings"
)

// kubeletAccess tells what a user must be allowed of a node for a request to its
// agent's server: the verb, and the subresources of nodes of which one suffices, as
// kubelets have it
// (https://kubernetes.io/docs/reference/access-authn-authz/kubelet-authn-authz).
func kubeletAccess(r *http.Request) (verb string, subresources []string) {
	switch r.Method {
	case http.MethodPost:
		verb = "create"
	case http.MethodPut:
		verb = "update"
	case http.MethodPatch:
		verb = "patch"
	case http.MethodDelete:
		verb = "delete"
	default:
		verb = "get"
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch first {
	case "stats", "metrics", "checkpoint":
		return verb, []string{first}
	case "logs":
		return verb, []string{"log"}
	case "pods", "runningpods":
		return verb, []string{"pods", "proxy"}
	case "configz", "healthz":
		return verb, []string{first, "proxy"}
	}
	return verb, []string{"proxy"}
}
