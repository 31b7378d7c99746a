package apiserver

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"knarr.dev/knarr/apiserver/registry"
)

// Kubelet reaches the agents' HTTPS API.
type Kubelet struct {
	// Transport presents the server's client certificate and trusts the agents'.
	Transport http.RoundTripper
}

// connectPod passes logs, exec, attach and port-forward on to the pod's node.
func (s *Server) connectPod(w http.ResponseWriter, r *http.Request, info *requestInfo, q registry.Request) error {
	if info.Subresource == "log" && info.Verb != "get" {
		return apierrors.NewMethodNotSupported(q.Resource.GroupResource(), info.Verb)
	}
	it, err := s.reg.Get(r.Context(), q, "")
	if err != nil {
		return err
	}
	pod := it.Object.(*corev1.Pod)
	query := r.URL.Query()
	container := query.Get("container")
	if info.Subresource != "portforward" {
		if container, err = pickContainer(pod, container); err != nil {
			return err
		}
		if info.Subresource != "log" && (pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed) {
			return apierrors.NewBadRequest(fmt.Sprintf("cannot %s into a container in a completed pod; current phase is %s", info.Subresource, pod.Status.Phase))
		}
	}
	base, err := s.agentURL(pod)
	if err != nil {
		return err
	}
	path := map[string]string{"log": "containerLogs", "exec": "exec", "attach": "attach", "portforward": "portForward"}[info.Subresource]
	target := *base
	target.Path = "/" + path + "/" + pod.Namespace + "/" + pod.Name
	if container != "" {
		target.Path += "/" + container
	}
	target.RawQuery = agentQuery(info.Subresource, query)
	switch {
	case info.Subresource == "portforward" && wsstream.IsWebSocketRequestWithTunnelingProtocol(r):
		s.tunnelPorts(w, r, &target)
	case info.Subresource != "log" && wsstream.IsWebSocketRequestWithStreamCloseProtocol(r):
		s.translateExec(w, r, &target)
	case info.Subresource == "log" && wsstream.IsWebSocketRequest(r):
		return s.translateLog(w, r, &target)
	default:
		s.proxy(w, r, &target)
	}
	return nil
}

// agentQuery renames exec's and attach's options to those of the kubelet API.
func agentQuery(subresource string, query url.Values) string {
	query.Del("container")
	if subresource == "exec" || subresource == "attach" {
		for from, to := range map[string]string{"stdin": "input", "stdout": "output", "stderr": "error"} {
			if isTrue(query.Get(from)) {
				query.Set(to, "1")
			}
			query.Del(from)
		}
		if isTrue(query.Get("tty")) {
			query.Set("tty", "1")
		} else {
			query.Del("tty")
		}
	}
	return query.Encode()
}

func pickContainer(pod *corev1.Pod, name string) (string, error) {
	var names, inits []string
	for _, c := range pod.Spec.Containers {
		names = append(names, c.Name)
	}
	for _, c := range pod.Spec.InitContainers {
		inits = append(inits, c.Name)
	}
	known := append(append([]string{}, names...), inits...)
	for _, c := range pod.Spec.EphemeralContainers {
		known = append(known, c.Name)
	}
	switch {
	case name == "" && len(names) == 1:
		return names[0], nil
	case name == "":
		if d := pod.Annotations["kubectl.kubernetes.io/default-container"]; contains(names, d) {
			return d, nil
		}
		msg := fmt.Sprintf("a container name must be specified for pod %s, choose one of: [%s]", pod.Name, strings.Join(names, " "))
		if len(inits) > 0 {
			msg += fmt.Sprintf(" or one of the init containers: [%s]", strings.Join(inits, " "))
		}
		return "", apierrors.NewBadRequest(msg)
	case !contains(known, name):
		return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", name, pod.Name))
	}
	return name, nil
}

func (s *Server) agentURL(pod *corev1.Pod) (*url.URL, error) {
	if pod.Spec.NodeName == "" {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", pod.Name))
	}
	nodes := s.reg.Resource(schema.GroupVersionResource{Version: "v1", Resource: "nodes"})
	it := nodes.Cache.Get(pod.Spec.NodeName)
	if it == nil {
		return nil, apierrors.NewNotFound(nodes.GroupResource(), pod.Spec.NodeName)
	}
	return s.nodeURL(it.Object.(*corev1.Node))
}

// nodeURL is where a node's agent serves.
func (s *Server) nodeURL(node *corev1.Node) (*url.URL, error) {
	for _, a := range node.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			host := a.Address
			if strings.Contains(host, ":") {
				host = "[" + host + "]"
			}
			return &url.URL{Scheme: "https", Host: fmt.Sprintf("%s:%d", host, node.Status.DaemonEndpoints.KubeletEndpoint.Port)}, nil
		}
	}
	return nil, apierrors.NewServiceUnavailable(fmt.Sprintf("node %s has no internal address yet", node.Name))
}

// proxy passes a request on, upgrades included, and streams the answer.
func (s *Server) proxy(w http.ResponseWriter, r *http.Request, target *url.URL) {
	p := &httputil.ReverseProxy{
		Transport:     s.kubelet.Transport,
		FlushInterval: -1,
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL, pr.Out.Host = target, target.Host
			pr.Out.Header.Del("Authorization")
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if errors.Is(err, r.Context().Err()) {
				return
			}
			writeError(w, r, apierrors.NewInternalError(fmt.Errorf("error dialing backend: %w", err)))
		},
	}
	p.ServeHTTP(w, r)
}
