package api

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"k8s.io/metrics/pkg/client/clientset/versioned"

	"knarr.dev/knarr/apiserver/apitest"
)

// TestUsage: metrics.k8s.io asks the nodes, in the forms of metrics-server.
func TestUsage(t *testing.T) {
	uid := ""
	kubelet := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.String() != "/stats/summary?only_cpu_and_memory=true" {
			t.Errorf("the node is asked for %s", r.URL)
		}
		w.Header().Set("Knarr-Stats-Window", "1.5s")
		use := func(n int) string {
			return fmt.Sprintf(`"cpu":{"time":"2026-01-01T00:00:00Z","usageNanoCores":%d},"memory":{"time":"2026-01-01T00:00:00Z","workingSetBytes":%d}`, n*1e6, n<<20)
		}
		fmt.Fprintf(w, `{"node":{"nodeName":"n",%s},"pods":[
			{"podRef":{"name":"a","namespace":"default","uid":%q},"containers":[{"name":"c",%s},{"name":"d",%s}]},
			{"podRef":{"name":"other","namespace":"default","uid":"x"},"containers":[]}]}`, use(500), uid, use(20), use(5))
	}))
	defer kubelet.Close()
	s := apitest.Start(t, apitest.Options{Kubelet: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}})
	c, ctx := s.Client(t).CoreV1(), t.Context()
	for name, port := range map[string]int{"n": kubelet.Listener.Addr().(*net.TCPAddr).Port, "dead": 1} {
		must(c.Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"zone": name}}}, metav1.CreateOptions{}))(t)
		must(c.Nodes().UpdateStatus(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"zone": name}}, Status: corev1.NodeStatus{
			Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}},
			DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(port)}}}}, metav1.UpdateOptions{}))(t)
	}
	must(c.ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}))(t)
	for _, name := range []string{"a", "pending"} {
		p := must(c.Pods("default").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
			Spec: corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c", Image: "i"}, {Name: "d", Image: "i"}}}}, metav1.CreateOptions{}))(t)
		if name == "a" {
			uid = string(p.UID)
			p.Status.Phase = corev1.PodRunning
			must(c.Pods("default").UpdateStatus(ctx, p, metav1.UpdateOptions{}))(t)
		}
	}
	for _, media := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		cfg := rest.CopyConfig(s.Admin(t))
		cfg.ContentType = media
		m := must(versioned.NewForConfig(cfg))(t).MetricsV1beta1()
		nodes := must(m.NodeMetricses().List(ctx, metav1.ListOptions{}))(t)
		if len(nodes.Items) != 1 || nodes.Items[0].Usage.Cpu().MilliValue() != 500 || nodes.Items[0].Usage.Memory().String() != "500Mi" ||
			nodes.Items[0].Window.Duration != 1500*time.Millisecond || nodes.Items[0].Labels["zone"] != "n" {
			t.Errorf("%s: nodes: %+v", media, nodes.Items)
		}
		if n := must(m.NodeMetricses().Get(ctx, "n", metav1.GetOptions{}))(t); n.Name != "n" {
			t.Errorf("%s: node: %+v", media, n)
		}
		pods := must(m.PodMetricses("").List(ctx, metav1.ListOptions{}))(t)
		if len(pods.Items) != 1 || len(pods.Items[0].Containers) != 2 || pods.Items[0].Containers[1].Usage.Cpu().MilliValue() != 5 || pods.Items[0].Namespace != "default" {
			t.Errorf("%s: pods: %+v", media, pods.Items)
		}
		for want, o := range map[int]metav1.ListOptions{0: {LabelSelector: "app=pending"}, 1: {FieldSelector: "metadata.name=a"}} {
			if l := must(m.PodMetricses("default").List(ctx, o))(t); len(l.Items) != want {
				t.Errorf("%s: %+v: %d pods", media, o, len(l.Items))
			}
		}
		if _, err := m.PodMetricses("default").Get(ctx, "pending", metav1.GetOptions{}); !apierrors.IsNotFound(err) || !strings.Contains(err.Error(), `pods.metrics.k8s.io "default/pending" not found`) {
			t.Errorf("%s: a pod without usage: %v", media, err)
		}
	}
	table := string(must(s.Client(t).CoreV1().RESTClient().Get().AbsPath("/apis/metrics.k8s.io/v1beta1/namespaces/default/pods").
		SetHeader("Accept", "application/json;as=Table;g=meta.k8s.io;v=v1").DoRaw(ctx))(t))
	if !strings.Contains(table, `"cells":["a","25m","25Mi","1.5s"]`) {
		t.Errorf("table: %s", table)
	}
	list := must(discovery.NewDiscoveryClientForConfigOrDie(s.Admin(t)).ServerResourcesForGroupVersion("metrics.k8s.io/v1beta1"))(t)
	if len(list.APIResources) != 2 || list.APIResources[1].Kind != "PodMetrics" || !list.APIResources[1].Namespaced {
		t.Errorf("discovery: %+v", list.APIResources)
	}
	err := c.RESTClient().Post().AbsPath("/apis/metrics.k8s.io/v1beta1/nodes").Body([]byte(`{}`)).Do(ctx).Error()
	if !apierrors.IsMethodNotSupported(err) {
		t.Errorf("creating a measurement: %v", err)
	}
}
