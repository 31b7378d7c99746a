package container

import (
	"context"
	"encoding/json"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// version of the runtime, as the CRI reports it.
const version = "0.1.0"

// Version names the runtime.
func (s *Server) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "knarr", RuntimeVersion: version, RuntimeApiVersion: "v1"}, nil
}

// Status reports that the runtime works and what it can do.
func (s *Server) Status(_ context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	features := &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true, UserNamespaces: s.shifts()}
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: true}, {Type: runtimeapi.NetworkReady, Status: true},
		}},
		RuntimeHandlers: append([]*runtimeapi.RuntimeHandler{{Features: features}, {Name: ownHandler, Features: features}}, s.handlers()...),
		Features:        &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true},
	}
	if req.GetVerbose() {
		config, err := json.Marshal(map[string]any{"root": s.cfg.Root, "stateDir": s.cfg.Run, "cgroupParent": s.cfg.CgroupParent})
		if err != nil {
			return nil, fmt.Errorf("describing in JSON: %w", err)
		}
		resp.Info = map[string]string{"config": string(config)}
	}
	return resp, nil
}

// CheckpointContainer is not served.
func (s *Server) CheckpointContainer(context.Context, *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	return nil, status.Error(codes.Unimplemented, "containers cannot be checkpointed: that needs CRIU, which this runtime does not use")
}

// RuntimeConfig says how cgroups are named.
func (s *Server) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS}}, nil
}

// UpdateRuntimeConfig takes note of the pods' addresses; the network does not need it.
func (s *Server) UpdateRuntimeConfig(context.Context, *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

// ReopenContainerLog opens the log's path anew after a rotation.
func (s *Server) ReopenContainerLog(_ context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	c.mu.RLock()
	o, state := c.output, c.state()
	c.mu.RUnlock()
	if o == nil || state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, fmt.Errorf("%w: container %s is not running", errState, c.ID)
	}
	if err := o.log.Reopen(); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}
