package deployment

import (
	"reflect"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func sized(replicas int32, surge, unavailable string) *appsv1.Deployment {
	s, u := intstr.Parse(surge), intstr.Parse(unavailable)
	return &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Replicas: &replicas, Strategy: appsv1.DeploymentStrategy{
		Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &s, MaxUnavailable: &u}}}}
}

func rs(spec, available int32) *appsv1.ReplicaSet {
	return &appsv1.ReplicaSet{Spec: appsv1.ReplicaSetSpec{Replicas: &spec}, Status: appsv1.ReplicaSetStatus{AvailableReplicas: available}}
}

func TestBounds(t *testing.T) {
	for _, tt := range []struct {
		n                  int32
		surge, unavailable string
		wantS, wantU       int32
	}{
		{10, "25%", "25%", 3, 2}, {1, "25%", "25%", 1, 0}, {3, "0", "0", 0, 1}, {3, "0%", "10%", 0, 1}, {2, "1", "5", 1, 2},
	} {
		if s, u := bounds(sized(tt.n, tt.surge, tt.unavailable)); s != tt.wantS || u != tt.wantU {
			t.Errorf("%d replicas, surge %s, unavailable %s: %d and %d, want %d and %d", tt.n, tt.surge, tt.unavailable, s, u, tt.wantS, tt.wantU)
		}
	}
}

func TestRollingSteps(t *testing.T) {
	for _, tt := range []struct {
		name      string
		d         *appsv1.Deployment
		old       []*appsv1.ReplicaSet
		fresh     *appsv1.ReplicaSet
		wantFresh int32
		wantOld   []int32
	}{
		{"start", sized(10, "25%", "25%"), []*appsv1.ReplicaSet{rs(10, 10)}, rs(0, 0), 3, []int32{8}},
		{"nothing is available yet", sized(10, "25%", "25%"), []*appsv1.ReplicaSet{rs(8, 8)}, rs(5, 0), 5, []int32{8}},
		{"five are available", sized(10, "25%", "25%"), []*appsv1.ReplicaSet{rs(8, 8)}, rs(5, 5), 5, []int32{3}},
		{"broken old pods go first", sized(4, "0", "1"), []*appsv1.ReplicaSet{rs(2, 0), rs(2, 2)}, rs(0, 0), 0, []int32{1, 2}},
		{"done", sized(3, "1", "0"), []*appsv1.ReplicaSet{rs(0, 0)}, rs(3, 3), 3, []int32{0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := freshReplicas(tt.d, append(tt.old, tt.fresh), tt.fresh)
			if got != tt.wantFresh {
				t.Errorf("new set gets %d, want %d", got, tt.wantFresh)
			}
			tt.fresh.Spec.Replicas = &got
			if old := oldReplicas(tt.d, tt.old, tt.fresh); !reflect.DeepEqual(old, tt.wantOld) {
				t.Errorf("old sets keep %v, want %v", old, tt.wantOld)
			}
		})
	}
}

func TestProportional(t *testing.T) {
	// Ten replicas with surge 3 grow to 15 in the middle of a rollout: 8 and 5 become 11 and 7.
	d := sized(15, "3", "2")
	d.Status.Replicas = 13
	got := proportional(d, []*appsv1.ReplicaSet{rs(8, 8), rs(5, 0)}, []int32{13, 13})
	if want := []int32{11, 7}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
