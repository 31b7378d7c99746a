package storageprotection_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/client/clienttest"
	"knarr.dev/knarr/controller/engine/enginetest"
	"knarr.dev/knarr/controller/storageprotection"
)

var classes = client.Resource{Group: "storage.k8s.io", Version: "v1", Resource: "volumeattributesclasses"}

func start(t *testing.T) *enginetest.Bench {
	return enginetest.Start(t, clienttest.New(), clock.RealClock{}, storageprotection.NewClaims(), storageprotection.NewVolumes(), storageprotection.NewClasses())
}

func remove(t *testing.T, b *enginetest.Bench, k client.Key) {
	t.Helper()
	if err := b.Delete(t.Context(), k, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Fatal(err)
	}
}

func pod(name, node, claim string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}, Spec: corev1.PodSpec{NodeName: node, Volumes: []corev1.Volume{
		{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}}}}
}

func TestClaimWaitsForThePodsThatMountIt(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(t *testing.T, b *enginetest.Bench)
	}{
		{"the pod ends", func(_ *testing.T, b *enginetest.Bench) {
			enginetest.Change(b, client.Key{Resource: client.Pods, Namespace: "a", Name: "p"}.Sub("status"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
		}},
		{"the pod goes", func(t *testing.T, b *enginetest.Bench) {
			remove(t, b, client.Key{Resource: client.Pods, Namespace: "a", Name: "p"})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := start(t)
			b.Make(client.Pods, pod("p", "node", "c"))
			b.Make(client.Pods, pod("waits", "", "c")) // holds nothing: it is not scheduled
			b.Make(client.PersistentVolumeClaims, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "c"}})
			claim := func() (*corev1.PersistentVolumeClaim, bool) {
				return client.Cached[*corev1.PersistentVolumeClaim](b.Cache(client.PersistentVolumeClaims, ""), "a", "c")
			}
			b.Until("protected", func() bool {
				c, ok := claim()
				return ok && len(c.Finalizers) == 1 && c.Finalizers[0] == "kubernetes.io/pvc-protection"
			}, client.PersistentVolumeClaims)
			remove(t, b, client.Key{Resource: client.PersistentVolumeClaims, Namespace: "a", Name: "c"})
			// Another claim goes through the same queue afterwards: when it has gone,
			// the first one was looked at and kept.
			b.Make(client.PersistentVolumeClaims, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "free", Finalizers: []string{"kubernetes.io/pvc-protection"}}})
			remove(t, b, client.Key{Resource: client.PersistentVolumeClaims, Namespace: "a", Name: "free"})
			b.Until("the unused claim has gone", func() bool {
				_, ok := b.Cache(client.PersistentVolumeClaims, "").Get("a", "free")
				return !ok
			}, client.PersistentVolumeClaims)
			if _, ok := claim(); !ok {
				t.Fatal("a claim went that a pod mounts")
			}
			c.end(t, b)
			b.Until("gone", func() bool { _, ok := claim(); return !ok }, client.PersistentVolumeClaims)
		})
	}
}

func TestVolumeWaitsForItsClaim(t *testing.T) {
	b := start(t)
	b.Make(client.PersistentVolumes, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v", Finalizers: []string{"kubernetes.io/pv-protection"}},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound}})
	remove(t, b, client.Key{Resource: client.PersistentVolumes, Name: "v"})
	enginetest.Change(b, client.Key{Resource: client.PersistentVolumes, Name: "v"}.Sub("status"), func(v *corev1.PersistentVolume) { v.Status.Phase = corev1.VolumeReleased })
	b.Until("gone", func() bool {
		_, ok := b.Cache(client.PersistentVolumes, "").Get("", "v")
		return !ok
	}, client.PersistentVolumes)
}

func TestClassWaitsForWhatNamesIt(t *testing.T) {
	b := start(t)
	name := "gold"
	b.Make(client.PersistentVolumeClaims, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "c"},
		Spec: corev1.PersistentVolumeClaimSpec{VolumeAttributesClassName: &name}})
	b.Make(classes, &storagev1.VolumeAttributesClass{ObjectMeta: metav1.ObjectMeta{Name: name, Finalizers: []string{"kubernetes.io/vac-protection"}}})
	remove(t, b, client.Key{Resource: classes, Name: name})
	enginetest.Change(b, client.Key{Resource: client.PersistentVolumeClaims, Namespace: "a", Name: "c"}, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeAttributesClassName = nil })
	b.Until("gone", func() bool {
		_, ok := b.Cache(classes, "").Get("", name)
		return !ok
	}, classes)
}
