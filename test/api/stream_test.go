package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	clientportforward "k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	clientexec "k8s.io/client-go/util/exec"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	crirc "k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"knarr.dev/knarr/apiserver/apitest"
)

// node is an agent whose containers know two commands: "cat" and "exit N".
type node struct{ *httptest.Server }

type exitError int

func (e exitError) Error() string   { return fmt.Sprintf("exit %d", int(e)) }
func (e exitError) String() string  { return e.Error() }
func (e exitError) Exited() bool    { return true }
func (e exitError) ExitStatus() int { return int(e) }

func (node) ExecInContainer(_ context.Context, _, _, _ string, cmd []string, in io.Reader, out, errs io.WriteCloser, tty bool, sizes <-chan crirc.TerminalSize, _ time.Duration) error {
	switch cmd[0] {
	case "cat":
		_, err := io.Copy(out, in)
		return err
	case "size":
		size := <-sizes
		_, err := fmt.Fprintf(out, "%dx%d", size.Width, size.Height)
		return err
	case "exit":
		var code exitError
		if _, err := fmt.Sscan(cmd[1], (*int)(&code)); err != nil {
			return err
		}
		if code == 0 {
			return nil
		}
		fmt.Fprint(errs, "oops")
		return code
	}
	return errors.New("no such command")
}

func (node) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	b := make([]byte, 5)
	if _, err := io.ReadFull(stream, b); err != nil {
		return err
	}
	_, err := fmt.Fprintf(stream, "%d says %s", port, b)
	return err
}

func startNode(t testing.TB) node {
	var n node
	mux := http.NewServeMux()
	mux.HandleFunc("/exec/default/p/c", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		o := &crirc.Options{Stdin: q.Get("input") == "1", Stdout: q.Get("output") == "1", Stderr: q.Get("error") == "1", TTY: q.Get("tty") == "1"}
		crirc.ServeExec(w, r, n, "p", "", "c", q["command"], o, time.Minute, time.Minute, crirc.SupportedStreamingProtocols)
	})
	mux.HandleFunc("/portForward/default/p", func(w http.ResponseWriter, r *http.Request) {
		portforward.ServePortForward(w, r, n, "p", "", nil, time.Minute, time.Minute, portforward.SupportedProtocols)
	})
	n.Server = httptest.NewTLSServer(mux)
	t.Cleanup(n.Close)
	return n
}

// withPod starts a server with a running pod "p" on such a node.
func withPod(t testing.TB) *apitest.Server {
	n := startNode(t)
	s := apitest.Start(t, apitest.Options{Kubelet: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}})
	c, ctx := s.Client(t).CoreV1(), t.Context()
	addr := n.Listener.Addr().(*net.TCPAddr)
	must(c.Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, metav1.CreateOptions{}))(t)
	must(c.Nodes().UpdateStatus(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{
		Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(addr.Port)}}}}, metav1.UpdateOptions{}))(t)
	must(c.ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}))(t)
	must(c.Pods("default").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, metav1.CreateOptions{}))(t)
	return s
}

func TestExec(t *testing.T) {
	s := withPod(t)
	executors := map[string]func(cfg *rest.Config, path string) (remotecommand.Executor, error){
		"websocket v5": func(cfg *rest.Config, u string) (remotecommand.Executor, error) {
			return remotecommand.NewWebSocketExecutor(cfg, "GET", u)
		},
		"websocket v4": func(cfg *rest.Config, u string) (remotecommand.Executor, error) {
			return remotecommand.NewWebSocketExecutorForProtocols(cfg, "GET", u, "v4.channel.k8s.io")
		},
	}
	for name, make := range executors {
		t.Run(name, func(t *testing.T) {
			run := func(query string, o remotecommand.StreamOptions) error {
				e := must(make(s.Admin(t), s.URL+"/api/v1/namespaces/default/pods/p/exec?"+query))(t)
				return e.StreamWithContext(t.Context(), o)
			}
			var out, errs bytes.Buffer
			if name == "websocket v5" { // v4 cannot close its input
				big := strings.Repeat("0123456789", 100_000)
				if err := run("command=cat&stdin=true&stdout=true", remotecommand.StreamOptions{Stdin: strings.NewReader(big), Stdout: &out}); err != nil || out.String() != big {
					t.Errorf("cat: %v, %d bytes", err, out.Len())
				}
			}
			err := run("command=exit&command=7&stdout=true&stderr=true", remotecommand.StreamOptions{Stdout: io.Discard, Stderr: &errs})
			var code clientexec.CodeExitError
			if !errors.As(err, &code) || code.Code != 7 || errs.String() != "oops" {
				t.Errorf("exit 7: %v, %q", err, errs.String())
			}
			out.Reset()
			if err := run("command=size&stdout=true&stdin=true&tty=true", remotecommand.StreamOptions{Stdin: hang{t.Context()}, Stdout: &out, Tty: true, TerminalSizeQueue: &oneSize{}}); err != nil || out.String() != "80x24" {
				t.Errorf("size: %v, %q", err, out.String())
			}
			if err := run("command=nonsense&stdout=true", remotecommand.StreamOptions{Stdout: io.Discard}); err == nil || !strings.Contains(err.Error(), "no such command") {
				t.Errorf("an unknown command: %v", err)
			}
		})
	}
}

// hang is an input that says nothing.
type hang struct{ ctx context.Context }

func (h hang) Read([]byte) (int, error) {
	<-h.ctx.Done()
	return 0, io.EOF
}

type oneSize struct{ told bool }

func (o *oneSize) Next() *remotecommand.TerminalSize {
	if o.told {
		return nil
	}
	o.told = true
	return &remotecommand.TerminalSize{Width: 80, Height: 24}
}

func TestPortForwardThroughAWebSocket(t *testing.T) {
	s := withPod(t)
	cfg := s.Admin(t)
	u := must(http.NewRequest("GET", s.URL+"/api/v1/namespaces/default/pods/p/portforward", nil))(t).URL
	dialer := must(clientportforward.NewSPDYOverWebsocketDialer(u, cfg))(t)
	conn, _, err := dialer.Dial("portforward.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	headers := http.Header{}
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	headers.Set(corev1.PortHeader, "80")
	headers.Set(corev1.PortForwardRequestIDHeader, "1")
	must(conn.CreateStream(headers))(t)
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data := must(conn.CreateStream(headers))(t)
	must(io.WriteString(data, "hello"))(t)
	if got := string(must(io.ReadAll(data))(t)); got != "80 says hello" {
		t.Errorf("%q", got)
	}
}

// BenchmarkKubectlExec is the whole command of a user, against a node that does
// nothing: what remains is kubectl's start and the streams' handshakes. The
// binary is named by KNARR.
func BenchmarkKubectlExec(b *testing.B) {
	bin := os.Getenv("KNARR")
	if bin == "" {
		b.Skip("KNARR does not name a knarr binary")
	}
	s := withPod(b)
	cfg := s.Admin(b)
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: s.URL, CertificateAuthorityData: cfg.CAData}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificateData: cfg.CertData, ClientKeyData: cfg.KeyData}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u", Namespace: "default"}
	config.CurrentContext = "x"
	file := filepath.Join(b.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		b.Fatal(err)
	}
	for _, args := range [][]string{{"version", "--client"}, {"get", "pod", "p"}, {"exec", "p", "--", "exit", "0"}} {
		b.Run(args[0], func(b *testing.B) {
			took := make([]time.Duration, 0, b.N)
			for range b.N {
				t := time.Now()
				cmd := exec.CommandContext(b.Context(), bin, append([]string{"kubectl", "--kubeconfig", file}, args...)...)
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v: %s", err, out)
				}
				took = append(took, time.Since(t))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
		})
	}
}
