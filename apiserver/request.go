package apiserver

import (
	"net/http"
	"strings"

	"k8s.io/apimachinery/pkg/api/validation/path"
	"k8s.io/apimachinery/pkg/fields"
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

	// FieldSelector and LabelSelector restrict a list, watch or deletecollection.
	FieldSelector, LabelSelector string

	// selected tells that Name comes from a field selector: it counts for
	// authorization only.
	selected bool
	// known tells that the resource is served; only then it appears in metrics.
	known bool
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
	if info.Name == "" && (info.Verb == "list" || info.Verb == "watch" || info.Verb == "deletecollection") {
		info.readSelectors(r)
	}
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
		switch {
		case watch:
			return "watch"
		case named:
			return "get"
		case strings.Contains(r.URL.RawQuery, "watch") && isTrue(r.URL.Query().Get("watch")):
			return "watch"
		}
		return "list"
	}
	return strings.ToLower(r.Method)
}

// readSelectors takes over the selectors. The name that a field selector demands
// counts as the request's: roles that name their resources permit such lists and
// watches too.
func (info *requestInfo) readSelectors(r *http.Request) {
	if !strings.Contains(r.URL.RawQuery, "Selector") {
		return
	}
	q := r.URL.Query()
	info.FieldSelector, info.LabelSelector = q.Get("fieldSelector"), q.Get("labelSelector")
	sel, err := fields.ParseSelector(info.FieldSelector)
	if err != nil {
		return
	}
	if name, ok := sel.RequiresExactMatch("metadata.name"); ok && len(path.IsValidPathSegmentName(name)) == 0 {
		info.Name, info.selected = name, true
	}
}

func isTrue(v string) bool { return v == "true" || v == "1" || v == "True" || v == "t" }
