package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"knarr.dev/knarr/kit/pki"
)

// A machine joins with a bootstrap token: it is given the certificate by which the API
// knows it, and one for its own server when a person has approved that. Later it needs
// the token no more.
func TestNodeJoinsWithAToken(t *testing.T) {
	c := start(t)
	c.apply(`
apiVersion: v1
kind: Secret
metadata: {name: bootstrap-token-abcdef, namespace: kube-system}
type: bootstrap.kubernetes.io/token
stringData: {token-id: abcdef, token-secret: 0123456789abcdef, usage-bootstrap-authentication: "true", auth-extra-groups: "system:bootstrappers:nodes"}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: nodes-join}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:node-bootstrapper"}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "system:bootstrappers:nodes"}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: nodes-approved}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:certificates.k8s.io:certificatesigningrequests:nodeclient"}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "system:bootstrappers:nodes"}]
`)
	boot := filepath.Join(c.dir, "bootstrap")
	kc := clientcmdapi.NewConfig()
	kc.Clusters["c"] = &clientcmdapi.Cluster{Server: c.config.Host, CertificateAuthorityData: c.config.CAData}
	kc.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: "abcdef.0123456789abcdef"}
	kc.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	kc.CurrentContext = "x"
	if err := clientcmd.WriteToFile(*kc, boot); err != nil {
		t.Fatal(err)
	}
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	octet := c.octet()
	name := fmt.Sprintf("join%d", octet-100)
	place := []string{"--name", name, "--data-dir", filepath.Join(c.dir, "join-data"), "--run-dir", filepath.Join(c.dir, "join-run")}
	args := append([]string{"agent", "--bootstrap-kubeconfig", boot, "--node-name", name, "--node-ip", "127.0.0.1", "--node-listen", fmt.Sprintf("127.0.0.1:%d", freePort(t)),
		"--pod-cidr", fmt.Sprintf("10.%d.0.0/16", octet), "--node-pod-cidr", fmt.Sprintf("10.%d.200.0/24", octet), "--service-cidr", fmt.Sprintf("10.%d.0.0/16", octet+50),
		"--register-with-taints", "alone=yes:NoSchedule"}, place...)
	log, err := os.Create(filepath.Join(c.dir, "join-log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := exec.Command(bin, append([]string{"down"}, place...)...).CombinedOutput(); err != nil {
			t.Errorf("knarr down of the joined node: %v\n%s", err, out)
		}
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("its log:\n%s", text)
		}
		log.Close()
	})
	var agent *exec.Cmd
	run := func() {
		agent = exec.Command(bin, args...)
		agent.Stdout, agent.Stderr, agent.SysProcAttr = log, log, &syscall.SysProcAttr{Setpgid: true}
		if err := agent.Start(); err != nil {
			t.Fatal(err)
		}
		go func(p *exec.Cmd) { _ = p.Wait() }(agent)
	}
	lease := func() string {
		l, err := c.client.CoordinationV1().Leases("kube-node-lease").Get(context.Background(), name, metav1.GetOptions{})
		if err != nil {
			return ""
		}
		return l.Spec.RenewTime.String()
	}
	ready := func() error {
		n, err := c.client.CoreV1().Nodes().Get(context.Background(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("its conditions are %+v", n.Status.Conditions)
	}
	run()
	c.eventually("a node that is ready", ready)
	healthz := func() (string, error) {
		return c.kubectl("get", "--raw", "/api/v1/nodes/"+name+"/proxy/healthz")
	}
	if out, err := healthz(); err == nil {
		t.Errorf("its server shows a certificate that nobody approved: %s", out)
	}
	pending := ""
	c.eventually("a request for the serving certificate", func() error {
		list, err := c.client.CertificatesV1().CertificateSigningRequests().List(context.Background(), metav1.ListOptions{FieldSelector: "spec.signerName=kubernetes.io/kubelet-serving"})
		if err != nil {
			return err
		}
		if len(list.Items) != 1 || list.Items[0].Spec.Username != "system:node:"+name {
			return fmt.Errorf("the requests are %+v", list.Items)
		}
		pending = list.Items[0].Name
		return nil
	})
	c.must("certificate", "approve", pending)
	c.eventually("an answer of the node's server", func() error {
		out, err := healthz()
		if err == nil && strings.TrimSpace(out) != "ok" {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})
	// The token is taken away, the agent ends, and its certificate has an hour of its year
	// left when it is back: it is given a new one, as nodes may renew their own.
	c.must("create", "clusterrolebinding", "nodes-renewed", "--group", "system:nodes", "--clusterrole", "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient")
	c.must("delete", "secret", "-n", "kube-system", "bootstrap-token-abcdef")
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	ca, err := pki.Open(filepath.Join(c.data, "pki"), func() time.Time { return time.Now().Add(time.Hour - 365*24*time.Hour) })
	if err != nil {
		t.Fatal(err)
	}
	old, err := ca.Client("system:node:"+name, "system:nodes")
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(old.TLS.Leaf.NotAfter); left <= 0 || left > 24*time.Hour {
		t.Fatalf("the old certificate is good for %v", left)
	}
	current := filepath.Join(c.dir, "join-data", "identity", "client-current.pem")
	if err := os.WriteFile(current, append(old.CertPEM, old.KeyPEM...), 0o600); err != nil { // through the link
		t.Fatal(err)
	}
	before := lease()
	run()
	c.eventually("a renewed certificate", func() error {
		pair, err := tls.LoadX509KeyPair(current, current)
		if err == nil && time.Until(pair.Leaf.NotAfter) < 24*time.Hour {
			err = fmt.Errorf("it is good until %v", pair.Leaf.NotAfter)
		}
		return err
	})
	c.eventually("a node that is heard of again", func() error {
		if now := lease(); now == before || now == "" {
			return fmt.Errorf("its lease is of %s still", now)
		}
		return ready()
	})
	c.eventually("an answer of the node's server after its restart", func() error {
		_, err := healthz()
		return err
	})
}
