package controller

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clienttest"
	"knarr.dev/knarr/controller/engine/enginetest"
	"knarr.dev/knarr/controller/namespace"
	"knarr.dev/knarr/controller/podgc"
	"knarr.dev/knarr/controller/rootca"
	"knarr.dev/knarr/controller/serviceaccount"
)

func TestNamespaceIsFurnished(t *testing.T) {
	b := enginetest.Start(t, clienttest.New(), clock.RealClock{}, serviceaccount.New(), rootca.New([]byte("PEM")))
	b.Make(client.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
	furnished := func() bool {
		cm, ok := client.Cached[*corev1.ConfigMap](b.Cache(client.ConfigMaps, ""), "a", "kube-root-ca.crt")
		_, sa := b.Cache(client.ServiceAccounts, "").Get("a", "default")
		return ok && sa && cm.Data["ca.crt"] == "PEM"
	}
	b.Until("furnished", furnished, client.ConfigMaps, client.ServiceAccounts)
	if err := b.Delete(t.Context(), client.Key{Resource: client.ServiceAccounts, Namespace: "a", Name: "default"}, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	enginetest.Change(b, client.Key{Resource: client.ConfigMaps, Namespace: "a", Name: "kube-root-ca.crt"}, func(cm *corev1.ConfigMap) { cm.Data = nil })
	b.Until("furnished again", furnished, client.ConfigMaps, client.ServiceAccounts)
}

func TestTerminatingNamespaceIsEmptied(t *testing.T) {
	f := clienttest.New()
	at := metav1.Now()
	for r, o := range map[client.Resource]client.Object{
		client.ConfigMaps: &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "x"}},
		client.Secrets:    &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "held", Finalizers: []string{"example.com/hold"}}},
		client.Namespaces: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a", DeletionTimestamp: &at, Finalizers: []string{"example.com/keep"}}, Spec: corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{corev1.FinalizerKubernetes}}},
	} {
		if _, err := f.Create(t.Context(), client.Key{Resource: r, Namespace: o.GetNamespace(), Name: o.GetName()}, o); err != nil {
			t.Fatal(err)
		}
	}
	b := enginetest.Start(t, f, clock.RealClock{}, namespace.New())
	ns := func() *corev1.Namespace {
		n, _ := client.Cached[*corev1.Namespace](b.Cache(client.Namespaces, ""), "", "a")
		return n
	}
	b.Until("the finalizer that holds is shown", func() bool {
		for _, c := range ns().Status.Conditions {
			if c.Type == corev1.NamespaceFinalizersRemaining && c.Message == "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances" {
				return true
			}
		}
		return false
	}, client.Namespaces)
	if _, ok := b.Cache(client.ConfigMaps, "").Get("a", "x"); ok {
		t.Error("the config map was not deleted")
	}
	enginetest.Change(b, client.Key{Resource: client.Secrets, Namespace: "a", Name: "held"}, func(s *corev1.Secret) { s.Finalizers = nil })
	b.Until("finalized", func() bool { return len(ns().Spec.Finalizers) == 0 }, client.Namespaces)
}

func TestPodGarbage(t *testing.T) {
	b := enginetest.Start(t, clienttest.New(), clock.RealClock{}, podgc.New(1))
	for _, n := range []string{"one", "two", "three"} {
		b.Make(client.Pods, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: n}, Status: corev1.PodStatus{Phase: corev1.PodSucceeded}})
	}
	b.Make(client.Pods, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "runs"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}})
	b.Until("one ended pod and the running one are left", func() bool {
		_, runs := b.Cache(client.Pods, "").Get("a", "runs")
		return runs && len(client.ListCached[*corev1.Pod](b.Cache(client.Pods, ""), "a", nil)) == 2
	}, client.Pods)
}
