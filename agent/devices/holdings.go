package devices

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"knarr.dev/knarr/agent/checkpoint"
)

// holdings are what containers hold, as the file has it.
type holdings struct {
	// Resources are those that plugins have announced.
	Resources []string `json:"resources"`
	// Pods by UID, container, resource.
	Pods map[string]map[string]map[string]*holding `json:"pods"`
}

// holding are the devices of one resource that a container has.
type holding struct {
	Devices []string `json:"devices"`
	// Response is what the plugin wants the container to have: a
	// ContainerAllocateResponse in protobuf.
	Response []byte `json:"response"`
}

func (h *holding) response() (*pluginapi.ContainerAllocateResponse, error) {
	r := &pluginapi.ContainerAllocateResponse{}
	return r, proto.Unmarshal(h.Response, r)
}

func (h *holdings) put(uid, container, resource string, v *holding) {
	if h.Pods[uid] == nil {
		h.Pods[uid] = map[string]map[string]*holding{}
	}
	if h.Pods[uid][container] == nil {
		h.Pods[uid][container] = map[string]*holding{}
	}
	h.Pods[uid][container][resource] = v
}

// used are the devices of a resource that containers hold; those of one pod's
// containers of which but says so are left out.
func (h *holdings) used(resource, pod string, but func(container string) bool) map[string]bool {
	out := map[string]bool{}
	for uid, containers := range h.Pods {
		for c, byName := range containers {
			v := byName[resource]
			if v == nil || uid == pod && but(c) {
				continue
			}
			for _, id := range v.Devices {
				out[id] = true
			}
		}
	}
	return out
}

func load(path string) (holdings, error) {
	h := holdings{}
	err := checkpoint.Load(path, &h)
	if h.Pods == nil {
		h.Pods = map[string]map[string]map[string]*holding{}
	}
	return h, err
}

func (h *holdings) save(path string) error {
	if err := checkpoint.Save(path, h); err != nil {
		return fmt.Errorf("note which containers hold which devices: %w", err)
	}
	return nil
}
