package container

import (
	"context"
	"encoding/json"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PodSandboxStatus describes one sandbox with its containers.
func (s *Server) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	p, err := s.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.PodSandboxStatusResponse{Status: p.status(), Timestamp: s.cfg.Now().UnixNano()}
	for _, c := range s.containersOf(p.ID) {
		resp.ContainersStatuses = append(resp.ContainersStatuses, c.status())
	}
	if req.GetVerbose() {
		resp.Info, err = info(map[string]any{
			"pid": p.Pause.PID, "cgroup": p.Cgroup, "netns": p.spaces.Network, "runtimeHandler": p.Handler, "config": message[*runtimeapi.PodSandboxConfig]{p.config()},
		})
		if err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// info is what the CRI's verbose answers hold: JSON under one key.
func info(v map[string]any) (map[string]string, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("describing in JSON: %w", err)
	}
	return map[string]string{"info": string(text)}, nil
}

func (p *pod) status() *runtimeapi.PodSandboxStatus {
	p.mu.RLock()
	defer p.mu.RUnlock()
	c := p.config()
	st := &runtimeapi.PodSandboxStatus{
		Id: p.ID, Metadata: c.GetMetadata(), State: p.state(), CreatedAt: p.Created.UnixNano(),
		Network: &runtimeapi.PodSandboxNetworkStatus{}, Labels: c.GetLabels(), Annotations: c.GetAnnotations(),
		RuntimeHandler: p.Handler,
		Linux:          &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: p.options()}},
	}
	if p.Ready && len(p.IPs) > 0 {
		st.Network.Ip = p.IPs[0]
		for _, ip := range p.IPs[1:] {
			st.Network.AdditionalIps = append(st.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
		}
	}
	return st
}

// state is read under mu.
func (p *pod) state() runtimeapi.PodSandboxState {
	if p.Ready {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

// ListPodSandbox lists the sandboxes that the filter selects.
func (s *Server) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: s.podItems(req.GetFilter())}, nil
}

func (s *Server) podItems(f *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	var items []*runtimeapi.PodSandbox
	for _, p := range s.listPods() {
		c := p.config()
		p.mu.RLock()
		item := &runtimeapi.PodSandbox{
			Id: p.ID, Metadata: c.GetMetadata(), State: p.state(), CreatedAt: p.Created.UnixNano(),
			Labels: c.GetLabels(), Annotations: c.GetAnnotations(), RuntimeHandler: p.Handler,
		}
		p.mu.RUnlock()
		if matchID(f.GetId(), item.Id) && (f.GetState() == nil || f.GetState().GetState() == item.State) &&
			matchLabels(f.GetLabelSelector(), item.Labels) {
			items = append(items, item)
		}
	}
	return items
}

// StreamPodSandboxes sends what ListPodSandbox answers, one message a sandbox.
func (s *Server) StreamPodSandboxes(req *runtimeapi.StreamPodSandboxesRequest, out runtimeapi.RuntimeService_StreamPodSandboxesServer) error {
	for _, item := range s.podItems(req.GetFilter()) {
		if err := out.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: []*runtimeapi.PodSandbox{item}}); err != nil {
			return err
		}
	}
	return nil
}

func matchID(want, id string) bool {
	return want == "" || len(want) <= len(id) && id[:len(want)] == want
}

func matchLabels(want, labels map[string]string) bool {
	for k, v := range want {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}
