package remote_test

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"knarr.dev/knarr/apiserver/apitest"
	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clientsuite"
	"knarr.dev/knarr/client/remote"
)

func open(t *testing.T, cfg *rest.Config) *remote.Client {
	t.Helper()
	c, err := remote.New(t.Context(), cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestSuite(t *testing.T) {
	clientsuite.Run(t, func(t *testing.T) client.Interface {
		s := apitest.Start(t, apitest.Options{})
		return open(t, s.Admin(t))
	})
}

// wire is a network between client and server that can be cut.
type wire struct {
	t      *testing.T
	l      net.Listener
	server string
	wg     sync.WaitGroup

	mu    sync.Mutex
	down  bool
	conns map[net.Conn]bool
}

func newWire(t *testing.T, server string) *wire {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{t: t, l: l, server: server, conns: map[net.Conn]bool{}}
	w.wg.Go(w.accept)
	t.Cleanup(func() {
		l.Close()
		w.cut()
		w.wg.Wait()
	})
	return w
}

func (w *wire) accept() {
	for {
		in, err := w.l.Accept()
		if err != nil {
			return
		}
		w.mu.Lock()
		down := w.down
		w.mu.Unlock()
		out, err := net.Dial("tcp", w.server)
		if down || err != nil {
			in.Close()
			if out != nil {
				out.Close()
			}
			continue
		}
		w.mu.Lock()
		w.conns[in], w.conns[out] = true, true
		w.mu.Unlock()
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			w.wg.Go(func() {
				_, _ = io.Copy(pair[0], pair[1]) // ends when the wire is cut
				pair[0].Close()
				pair[1].Close()
			})
		}
	}
}

// cut breaks all connections and lets no new one pass until mend.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = true
	for c := range w.conns {
		c.Close()
	}
	clear(w.conns)
}

func (w *wire) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = false
}

func through(w *wire, cfg *rest.Config) *rest.Config {
	cfg = rest.CopyConfig(cfg)
	cfg.Host = "https://" + w.l.Addr().String()
	return cfg
}

func put(t *testing.T, cl client.Interface, name, value string) {
	t.Helper()
	k := client.Key{Resource: client.ConfigMaps, Namespace: "a", Name: name}
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}, Data: map[string]string{"v": value}}
	_, err := cl.Update(t.Context(), k, cm)
	if apierrors.IsNotFound(err) {
		_, err = cl.Create(t.Context(), k, cm)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, cl client.Interface, name string) {
	t.Helper()
	if err := cl.Delete(t.Context(), client.Key{Resource: client.ConfigMaps, Namespace: "a", Name: name}, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// The network breaks again and again while objects change: a subscriber sees each
// change once, in order.
func TestBrokenConnectionLosesAndRepeatsNothing(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	s.Namespace(t, "a")
	direct := open(t, s.Admin(t))
	w := newWire(t, strings.TrimPrefix(s.URL, "https://"))
	cl := open(t, through(w, s.Admin(t)))
	put(t, direct, "x", "start")
	f := clientsuite.Follow(t, cl.Cache(client.ConfigMaps, "metadata.namespace=a"))
	defer f.Cancel()
	f.Want("+a/x=start")
	for round := range 5 {
		var want []string
		for i := range 5 {
			put(t, direct, "x", fmt.Sprintf("%d-%d", round, i))
			want = append(want, fmt.Sprintf("~a/x=%d-%d", round, i))
			if i == 2 {
				w.cut()
			}
		}
		name := fmt.Sprintf("y%d", round)
		put(t, direct, name, "1")
		remove(t, direct, name)
		w.mend()
		f.Want(append(want, "+a/"+name+"=1", "-a/"+name)...)
	}
}

// A client that was away for longer than the server remembers lists anew and
// tells the differences alone.
func TestForgottenRevision(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	s.Namespace(t, "a")
	direct := open(t, s.Admin(t))
	w := newWire(t, strings.TrimPrefix(s.URL, "https://"))
	cl := open(t, through(w, s.Admin(t)))
	for _, name := range []string{"stays", "changes", "goes", "reborn"} {
		put(t, direct, name, "1")
	}
	f := clientsuite.Follow(t, cl.Cache(client.ConfigMaps, "metadata.namespace=a"))
	defer f.Cancel()
	f.WantSet("+a/stays=1", "+a/changes=1", "+a/goes=1", "+a/reborn=1")
	w.cut()
	remove(t, direct, "goes")
	remove(t, direct, "reborn")
	put(t, direct, "reborn", "2")
	put(t, direct, "comes", "1")
	// Far more changes than a watch can be taken up after.
	const changes = 6000
	for i := range changes {
		put(t, direct, "changes", fmt.Sprint(i+2))
	}
	w.mend()
	f.WantSet("-a/goes", "-a/reborn", "+a/reborn=2", "+a/comes=1", fmt.Sprintf("~a/changes=%d", changes+1))
}

// A node's certificate is all that an agent has: it follows one ConfigMap with the
// permission to read that one.
func TestOneObjectOfANamespace(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	s.Namespace(t, "a")
	direct := open(t, s.Admin(t))
	gv := rbacv1.SchemeGroupVersion
	meta := metav1.ObjectMeta{Name: "reader", Namespace: "a"}
	for r, o := range map[string]client.Object{
		"roles":        &rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{Verbs: []string{"get", "list", "watch"}, APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{"x"}}}},
		"rolebindings": &rbacv1.RoleBinding{ObjectMeta: meta, Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "part"}}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "reader"}},
	} {
		if _, err := direct.Create(t.Context(), client.Key{Resource: gv.WithResource(r), Namespace: "a", Name: "reader"}, o); err != nil {
			t.Fatal(err)
		}
	}
	part := open(t, s.As(t, "part"))
	f := clientsuite.Follow(t, part.Cache(client.ConfigMaps, "metadata.namespace=a,metadata.name=x"))
	defer f.Cancel()
	put(t, direct, "y", "1")
	put(t, direct, "x", "1")
	f.Want("+a/x=1")
	if _, err := part.Get(t.Context(), client.Key{Resource: client.ConfigMaps, Namespace: "a", Name: "y"}); !apierrors.IsForbidden(err) {
		t.Errorf("get of another object: %v", err)
	}
}

func TestResources(t *testing.T) {
	s := apitest.Start(t, apitest.Options{})
	list, err := open(t, s.Admin(t)).Resources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		if r.Resource == client.Pods {
			if r.Kind != "Pod" || !r.Namespaced || len(r.Verbs) < 8 {
				t.Errorf("pods are %+v", r)
			}
			return
		}
	}
	t.Errorf("no pods among %d resources", len(list))
}
