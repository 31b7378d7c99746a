package dra

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	draapi "k8s.io/kubelet/pkg/apis/dra/v1"
	"k8s.io/utils/ptr"

	"knarr.dev/knarr/agent/dra/dratest"
	"knarr.dev/knarr/agent/plugins"
)

// claims are the API's.
type claims map[string]*resourceapi.ResourceClaim

func (c claims) get(_ context.Context, _, name string) (*resourceapi.ResourceClaim, error) {
	if c[name] == nil {
		return nil, fmt.Errorf("resourceclaims %q not found", name)
	}
	return c[name], nil
}

// claim is allocated: REQUEST=DRIVER/DEVICE, for pods by UID.
func claim(name string, pods []string, results ...string) *resourceapi.ResourceClaim {
	c := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name)}}
	c.Status.Allocation = &resourceapi.AllocationResult{}
	for _, r := range results {
		request, rest, _ := strings.Cut(r, "=")
		driver, device, _ := strings.Cut(rest, "/")
		c.Status.Allocation.Devices.Results = append(c.Status.Allocation.Devices.Results, resourceapi.DeviceRequestAllocationResult{Request: request, Driver: driver, Pool: "pool", Device: device})
	}
	for _, p := range pods {
		c.Status.ReservedFor = append(c.Status.ReservedFor, resourceapi.ResourceClaimConsumerReference{Resource: "pods", Name: p, UID: types.UID(p)})
	}
	return c
}

// pod uses claims: its container c has those that uses says, NAME or NAME/REQUEST.
func pod(uid string, names []string, uses ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: uid, UID: types.UID(uid)}}
	for _, n := range names {
		p.Spec.ResourceClaims = append(p.Spec.ResourceClaims, corev1.PodResourceClaim{Name: n, ResourceClaimName: ptr.To(n)})
	}
	c := corev1.Container{Name: "c"}
	for _, u := range uses {
		name, request, _ := strings.Cut(u, "/")
		c.Resources.Claims = append(c.Resources.Claims, corev1.ResourceClaim{Name: name, Request: request})
	}
	p.Spec.Containers = []corev1.Container{c, {Name: "none"}}
	return p
}

type world struct {
	t    *testing.T
	api  claims
	file string
	m    *Manager
}

func open(t *testing.T, api claims, file string, drivers ...*dratest.Driver) *world {
	t.Helper()
	m, err := New(Config{Claim: api.get, File: file, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	for _, d := range drivers {
		v := d.Versions
		if v == nil {
			v = []string{"v1.DRAPlugin"}
		}
		if err := m.Register(t.Context(), plugins.Plugin{Name: d.Name, Endpoint: d.Endpoint(), Versions: v}); err != nil {
			t.Fatal(err)
		}
	}
	return &world{t, api, file, m}
}

func (w *world) prepare(p *corev1.Pod, want string) {
	w.t.Helper()
	err := w.m.Prepare(w.t.Context(), p)
	if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
		w.t.Errorf("pod %s: %v, want %q", p.Name, err, want)
	}
}

func (w *world) grants(p *corev1.Pod, container string, want ...string) {
	w.t.Helper()
	var got []string
	for _, d := range w.m.Grant(p, container).CDI {
		got = append(got, d.Name)
	}
	if !slices.Equal(got, want) {
		w.t.Errorf("container %s of pod %s has %q, want %q", container, p.Name, got, want)
	}
}

// device gives each claim's devices a CDI name of their own.
func gpu(requests ...string) *draapi.Device {
	return &draapi.Device{RequestNames: requests, PoolName: "pool", DeviceName: requests[0], CdiDeviceIds: []string{"vendor/gpu=" + requests[0]}}
}

func TestClaimsArePreparedAndUndone(t *testing.T) {
	one := &dratest.Driver{Name: "one", Devices: func(string) []*draapi.Device { return []*draapi.Device{gpu("a"), gpu("b/big"), gpu("both", "a")} }}
	two := &dratest.Driver{Name: "two", Versions: []string{"v1beta1.DRAPlugin"}, Devices: func(string) []*draapi.Device {
		return []*draapi.Device{{PoolName: "pool", DeviceName: "d", CdiDeviceIds: []string{"vendor/nic=all"}}}
	}}
	one.Start(t, "")
	two.Start(t, "")
	api := claims{"shared": claim("shared", []string{"p", "q"}, "a=one/x", "b=one/y", "n=two/z")}
	file := filepath.Join(t.TempDir(), "claims.json")
	w := open(t, api, file, one, two)
	p, q := pod("p", []string{"shared"}, "shared"), pod("q", []string{"shared"}, "shared/b")
	w.grants(p, "c")
	w.prepare(p, "")
	w.prepare(p, "")
	w.grants(p, "c", "vendor/gpu=a", "vendor/gpu=b/big", "vendor/gpu=both", "vendor/nic=all")
	w.grants(p, "none")
	w.grants(q, "c") // it has not been prepared for it
	w.prepare(q, "")
	w.grants(q, "c", "vendor/gpu=b/big", "vendor/nic=all")
	if got := one.Calls(); !slices.Equal(got, []string{"NodePrepareResources shared"}) {
		t.Errorf("calls: %q", got)
	}
	// A restart keeps it; the last pod's end undoes it.
	w = open(t, api, file, one, two)
	w.grants(p, "c", "vendor/gpu=a", "vendor/gpu=b/big", "vendor/gpu=both", "vendor/nic=all")
	w.prepare(p, "")
	if err := w.m.Release(t.Context(), "p"); err != nil {
		t.Error(err)
	}
	if got := one.Prepared(); len(got) != 1 {
		t.Errorf("prepared: %q", got)
	}
	if err := w.m.Keep(t.Context(), map[string]bool{"other": true}); err != nil {
		t.Error(err)
	}
	if a, b := one.Prepared(), two.Prepared(); len(a)+len(b) != 0 {
		t.Errorf("prepared: %q and %q", a, b)
	}
	for range 2 {
		if err := w.m.Release(t.Context(), "q"); err != nil {
			t.Error(err)
		}
	}
	if got := open(t, api, file).m.claims; len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

func TestClaimsThatCannotBePrepared(t *testing.T) {
	d := &dratest.Driver{Name: "one", Devices: func(string) []*draapi.Device { return nil }}
	d.Start(t, "")
	gone := claim("gone", []string{"p"}, "a=one/x")
	gone.DeletionTimestamp = ptr.To(metav1.Now())
	open1 := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Name: "open"}}
	api := claims{"open": open1, "gone": gone, "others": claim("others", []string{"q"}, "a=one/x"), "lost": claim("lost", []string{"p"}, "a=nobody/x"), "fails": claim("fails", []string{"p"}, "a=one/x")}
	w := open(t, api, filepath.Join(t.TempDir(), "c"), d)
	for name, want := range map[string]string{
		"open": "it is not allocated", "gone": "being deleted", "others": "not reserved for pod p", "lost": "DRA driver nobody is not registered", "missing": "not found",
	} {
		w.prepare(pod("p", []string{name}), want)
	}
	d.Fail = func(method string) error { return errors.New("no " + method) }
	p := pod("p", []string{"fails"}, "fails")
	w.prepare(p, "driver one: NodePrepareResources: no NodePrepareResources")
	// What may have been prepared is undone, and asked for until it is.
	if err := w.m.Release(t.Context(), "p"); err == nil || !strings.Contains(err.Error(), "no NodeUnprepareResources") {
		t.Error(err)
	}
	d.Fail = nil
	w.m.Register(t.Context(), plugins.Plugin{Name: "nobody", Endpoint: d.Endpoint(), Versions: []string{"v1.DRAPlugin"}})
	if err := w.m.Release(t.Context(), "p"); err != nil {
		t.Error(err)
	}
	// A template whose claim is not there yet, and one that makes none.
	p = pod("p", nil, "t")
	p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "t", ResourceClaimTemplateName: ptr.To("x")}}
	w.prepare(p, "has not been created from its template yet")
	p.Status.ResourceClaimStatuses = []corev1.PodResourceClaimStatus{{Name: "t"}}
	w.prepare(p, "")
	p.Status.ResourceClaimStatuses[0].ResourceClaimName = ptr.To("fails")
	w.prepare(p, "")
	if err := w.m.Register(t.Context(), plugins.Plugin{Name: "x", Versions: []string{"v9"}}); err == nil {
		t.Error("a driver of another version was accepted")
	}
	w.m.Deregister(plugins.Plugin{Name: "one", Endpoint: "/another"})
	w.prepare(pod("p", []string{"fails"}), "")
	w.m.Deregister(plugins.Plugin{Name: "one", Endpoint: d.Endpoint()})
	if err := w.m.Release(t.Context(), "p"); err == nil || !strings.Contains(err.Error(), "is not registered") {
		t.Error(err)
	}
}
