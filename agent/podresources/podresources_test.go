package podresources

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"
	"k8s.io/utils/cpuset"

	"knarr.dev/knarr/agent/devices"
	"knarr.dev/knarr/agent/memory"
	"knarr.dev/knarr/agent/plugins"
	"knarr.dev/knarr/agent/topology"
)

func TestWhatContainersHave(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u"}, Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "i"}, {Name: "side", RestartPolicy: &always}}, Containers: []corev1.Container{{Name: "c"}}}}
	ended := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "ended", Namespace: "ns"}, Status: corev1.PodStatus{Phase: corev1.PodFailed}}
	all := []devices.Device{{Resource: "a/x", ID: "1", Nodes: []int{0}}, {Resource: "a/x", ID: "2", Nodes: []int{1}}, {Resource: "a/x", ID: "3", Nodes: []int{0}}, {Resource: "b/y", ID: "1"}}
	s := New(Config{
		Pods:       func() []*corev1.Pod { return []*corev1.Pod{ended, pod} },
		AllDevices: func() []devices.Device { return all },
		Devices: func(uid, c string) []devices.Device {
			if uid == "u" && c == "c" {
				return all[:1]
			}
			return nil
		},
		AllCPUs: func() cpuset.CPUSet { return cpuset.New(3, 1, 2) },
		CPUs: func(uid, c string) cpuset.CPUSet {
			if c == "side" {
				return cpuset.New(2)
			}
			return cpuset.New()
		},
		AllMemory: func() []memory.Block { return []memory.Block{{Nodes: topology.Of(1), Type: "memory", Size: 7}} },
		Memory:    func(uid, c string) []memory.Block { return nil },
	})
	path := filepath.Join(t.TempDir(), "r", "kubelet.sock")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, path) }()
	defer func() {
		cancel()
		<-done
	}()
	conn, err := plugins.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := podresourcesapi.NewPodResourcesListerClient(conn)
	want := `{"name":"p","namespace":"ns","containers":[{"name":"side","cpuIds":["2"]},{"name":"c","devices":[{"resourceName":"a/x","deviceIds":["1"],"topology":{"nodes":[{}]}}]}]}`
	check := func(what string, got proto.Message, want string, into proto.Message) {
		t.Helper()
		if err := protojson.Unmarshal([]byte(want), into); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, into) {
			t.Errorf("%s: %v, want %v", what, got, into)
		}
	}
	list, err := c.List(ctx, &podresourcesapi.ListPodResourcesRequest{}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	check("List", list, `{"podResources":[`+want+`]}`, &podresourcesapi.ListPodResourcesResponse{})
	one, err := c.Get(ctx, &podresourcesapi.GetPodResourcesRequest{PodName: "p", PodNamespace: "ns"})
	if err != nil {
		t.Fatal(err)
	}
	check("Get", one, `{"podResources":`+want+`}`, &podresourcesapi.GetPodResourcesResponse{})
	for _, name := range []string{"ended", "other"} {
		if _, err := c.Get(ctx, &podresourcesapi.GetPodResourcesRequest{PodName: name, PodNamespace: "ns"}); status.Code(err) != codes.NotFound {
			t.Errorf("pod %s: %v", name, err)
		}
	}
	have, err := c.GetAllocatableResources(ctx, &podresourcesapi.AllocatableResourcesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	check("GetAllocatableResources", have, `{"devices":[{"resourceName":"a/x","deviceIds":["1","3"],"topology":{"nodes":[{}]}},{"resourceName":"a/x","deviceIds":["2"],"topology":{"nodes":[{"ID":"1"}]}},
		{"resourceName":"b/y","deviceIds":["1"]}],"cpuIds":["1","2","3"],"memory":[{"memoryType":"memory","size":"7","topology":{"nodes":[{"ID":"1"}]}}]}`, &podresourcesapi.AllocatableResourcesResponse{})
}
