package e2e

import (
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

// A cluster on an etcd that runs elsewhere survives the loss of its own data
// directory but for its keys, keeps its objects under Kubernetes' own names, and
// secrets sealed.
func TestExternalEtcd(t *testing.T) {
	cfg := embed.NewConfig()
	cfg.Dir = t.TempDir()
	cfg.LogLevel = "panic"
	cfg.ListenPeerUrls = nil
	cfg.ListenClientUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	endpoint := "http://" + e.Clients[0].Addr().String()

	c := startWith(t, func(dir string) string { return filepath.Join(dir, "data") }, "--etcd-servers", endpoint)
	c.apply(helloPod)
	c.awaitPod("hello", "ready", ready)
	c.must("create", "secret", "generic", "hidden", "--from-literal=password=swordfish")
	c.kill()
	c.up()
	if out := c.must("get", "secret", "hidden", "-o", "jsonpath={.data.password}"); out != "c3dvcmRmaXNo" {
		t.Errorf("secret after a restart: %q", out)
	}
	kv, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}})
	if err != nil {
		t.Fatal(err)
	}
	defer kv.Close()
	pod, err := kv.Get(t.Context(), "/registry/pods/default/hello")
	if err != nil || len(pod.Kvs) != 1 || !strings.HasPrefix(string(pod.Kvs[0].Value), "k8s\x00") {
		t.Errorf("the pod in etcd: %v, %v", pod, err)
	}
	secret, err := kv.Get(t.Context(), "/registry/secrets/default/hidden")
	if err != nil || len(secret.Kvs) != 1 || strings.Contains(string(secret.Kvs[0].Value), "swordfish") {
		t.Errorf("the secret in etcd: %v, %v", secret, err)
	}
}
