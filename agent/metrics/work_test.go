package metrics

import (
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	testclock "k8s.io/utils/clock/testing"
)

func TestWork(t *testing.T) {
	start := time.Unix(1000, 0)
	m, requests := New("v1.36.3+knarr", "abc"), NewRequests()
	clk, cert := testclock.NewFakeClock(start), (*x509.Certificate)(nil)
	current := func() *x509.Certificate { return cert }
	m.Add(append(requests.Collectors(), TTL("client", current, clk), TTL("server", func() *x509.Certificate { return nil }, clk))...)
	cert = &x509.Certificate{NotAfter: start.Add(time.Hour)} // renewed since
	m.Listed(start, start.Add(time.Second))
	m.Listed(start.Add(4*time.Second), start.Add(6*time.Second))
	m.Worked("create", time.Second)
	m.Mounted("kubernetes.io/secret", time.Second, errors.New("x"))
	m.Grouped("update", time.Second)
	m.PodRuns(time.Second, 9*time.Second, 5*time.Second)
	api := httptest.NewServer(http.NotFoundHandler())
	host := strings.TrimPrefix(api.URL, "http://")
	c := http.Client{Transport: requests.Wrap(http.DefaultTransport)}
	if _, err := c.Get(api.URL); err != nil {
		t.Fatal(err)
	}
	api.Close()
	if _, err := c.Get(api.URL); err == nil {
		t.Fatal("a server that is gone answers")
	}
	var none *Metrics // counts nothing, and does not mind
	none.Listed(start, start)
	none.Worked("create", 0)
	none.Mounted("x", 0, nil)
	none.Grouped("update", 0)
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{
		"kubelet_pleg_relist_duration_seconds_sum 3\n", "kubelet_pleg_relist_interval_seconds_sum 4\n", "kubelet_pleg_relist_interval_seconds_count 1\n",
		`kubelet_pod_worker_duration_seconds_sum{operation_type="create"} 1`,
		`storage_operation_duration_seconds_count{migrated="false",operation_name="volume_mount",status="fail-unknown",volume_plugin="kubernetes.io/secret"} 1`,
		`kubelet_cgroup_manager_duration_seconds_sum{operation_type="update"} 1`,
		"kubelet_pod_start_duration_seconds_sum 1\n", "kubelet_pod_start_total_duration_seconds_sum 9\n", "kubelet_pod_start_sli_duration_seconds_sum 4\n",
		"kubelet_certificate_manager_client_ttl_seconds 3600\n", "kubelet_certificate_manager_server_ttl_seconds +Inf\n",
		`rest_client_requests_total{code="404",host="` + host + `",method="GET"} 1`, `rest_client_requests_total{code="<error>",host="` + host + `",method="GET"} 1`,
		`rest_client_request_duration_seconds_count{host="` + host + `",verb="GET"} 2`,
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %s in\n%s", want, w.Body)
		}
	}
}
