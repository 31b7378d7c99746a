package apiserver

import (
	"net/http"
	"strings"
)

// requestInfo is what a URL path and method say.
type requestInfo struct {
	IsResource  bool
	Verb        string // get, list, watch, create, update, patch, delete, deletecollection; else the lower-case method
	Group       string
	Version     string
	Resource    string
	Subresource string
	Namespace   string
	Name        string
	Path        string
	// Rest is what follows the subresource, for proxies.
	Rest string
}

// parseRequest reads paths of the form
//
//	/api/v1/[namespaces/NS/]RESOURCE[/NAME[/SUBRESOURCE[/REST]]]
//	/apis/GROUP/VERSION/[namespaces/NS/]RESOURCE[/NAME[/SUBRESOURCE]]
func parseRequest(r *http.Request) requestInfo {
	info := requestInfo{Path: r.URL.Path, Verb: strings.ToLower(r.Method)}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case parts[0] == "api" && len(parts) >= 3:
		info.Version, parts = parts[1], parts[2:]
	case parts[0] == "apis" && len(parts) >= 4:
		info.Group, info.Version, parts = parts[1], parts[2], parts[3:]
	default:
		return info
	}
	info.IsResource = true
	watch := false
	if parts[0] == "watch" && len(parts) > 1 { // the old form of ?watch=true
		watch, parts = true, parts[1:]
	}
	if parts[0] == "namespaces" && len(parts) >= 3 && (info.Group != "" || parts[2] != "status" && parts[2] != "finalize") {
		info.Namespace, parts = parts[1], parts[2:]
	}
	info.Resource = parts[0]
	if len(parts) > 1 {
		info.Name = parts[1]
	}
	if info.Resource == "namespaces" && info.Group == "" {
		info.Namespace = info.Name
	}
	if len(parts) > 2 {
		info.Subresource = parts[2]
		info.Rest = strings.Join(parts[3:], "/")
	}
	info.Verb = resourceVerb(r, info.Name != "", watch)
	return info
}

func resourceVerb(r *http.Request, named, watch bool) string {
	switch r.Method {
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		if named {
			return "delete"
		}
		return "deletecollection"
	case http.MethodGet, http.MethodHead:
		if watch || isTrue(r.URL.Query().Get("watch")) {
			return "watch"
		}
		if named {
			return "get"
		}
		return "list"
	}
	return strings.ToLower(r.Method)
}

func isTrue(v string) bool { return v == "true" || v == "1" || v == "True" || v == "t" }
