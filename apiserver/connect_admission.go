package apiserver

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"knarr.dev/knarr/apiserver/registry"
)

// connectOptions reads the options of the subresources that are connections: what
// admission sees of them. rest is the path below the subresource.
func connectOptions(resource, subresource, rest string, q url.Values) (kind string, options runtime.Object) {
	yes := func(name string) bool { return isTrue(q.Get(name)) }
	path := "/" + rest
	switch resource + "/" + subresource {
	case "pods/exec":
		return "PodExecOptions", &corev1.PodExecOptions{Stdin: yes("stdin"), Stdout: yes("stdout"), Stderr: yes("stderr"), TTY: yes("tty"),
			Container: q.Get("container"), Command: q["command"]}
	case "pods/attach":
		return "PodAttachOptions", &corev1.PodAttachOptions{Stdin: yes("stdin"), Stdout: yes("stdout"), Stderr: yes("stderr"), TTY: yes("tty"),
			Container: q.Get("container")}
	case "pods/portforward":
		o := &corev1.PodPortForwardOptions{}
		for _, text := range q["ports"] {
			for _, p := range strings.Split(text, ",") {
				if n, err := strconv.ParseInt(p, 10, 32); err == nil { // others the agent refuses
					o.Ports = append(o.Ports, int32(n))
				}
			}
		}
		return "PodPortForwardOptions", o
	case "pods/proxy":
		return "PodProxyOptions", &corev1.PodProxyOptions{Path: path}
	case "services/proxy":
		return "ServiceProxyOptions", &corev1.ServiceProxyOptions{Path: path}
	case "nodes/proxy":
		return "NodeProxyOptions", &corev1.NodeProxyOptions{Path: path}
	}
	return "", nil
}

// admitConnect asks admission about a connection; others pass.
func (s *Server) admitConnect(r *http.Request, info *requestInfo, q registry.Request) error {
	kind, options := connectOptions(info.Resource, info.Subresource, info.Rest, r.URL.Query())
	if options == nil {
		return nil
	}
	_, err := s.reg.Admit(r.Context(), &q, registry.Connect, corev1.SchemeGroupVersion.WithKind(kind), options, nil)
	return err
}

// admitToken asks admission about a request for a token, which it may change.
func (s *Server) admitToken(r *http.Request, q registry.Request, t *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	out, err := s.reg.Admit(r.Context(), &q, registry.Create, authenticationv1.SchemeGroupVersion.WithKind("TokenRequest"), t, nil)
	if err != nil {
		return nil, err
	}
	return out.(*authenticationv1.TokenRequest), nil
}
