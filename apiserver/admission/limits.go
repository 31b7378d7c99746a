package admission

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	resourcehelper "k8s.io/component-helpers/resource"

	"knarr.dev/knarr/api/kind"
	"knarr.dev/knarr/apiserver/registry"
)

var limitRanges = schema.GroupVersionResource{Version: "v1", Resource: "limitranges"}

// limitsAnnotation tells what limitRanger filled in.
const limitsAnnotation = "kubernetes.io/limit-ranger"

// limitRanger gives containers the requests and limits that their namespace's
// LimitRanges have as defaults, and refuses pods and claims outside their bounds.
func limitRanger(d Deps) registry.Admission {
	each := func(namespace string, visit func(corev1.LimitRangeItem)) {
		d.Each(limitRanges, namespace, func(o kind.Object) bool {
			for _, item := range o.(*corev1.LimitRange).Spec.Limits {
				visit(item)
			}
			return true
		})
	}
	return registry.Admission{
		Name: "LimitRanger",
		Mutate: func(_ context.Context, a *registry.Attributes) error {
			if isPod(a) && a.Operation == registry.Create {
				pod := a.Object.(*corev1.Pod)
				each(a.Namespace, func(item corev1.LimitRangeItem) {
					if item.Type == corev1.LimitTypeContainer {
						fillContainers(pod, item)
					}
				})
			}
			return nil
		},
		Validate: func(_ context.Context, a *registry.Attributes) error {
			var errs []error
			switch o := a.Object.(type) {
			case *corev1.Pod:
				if a.Operation == registry.Create && a.Subresource == "" || a.Operation == registry.Update && a.Subresource == "resize" {
					each(a.Namespace, func(item corev1.LimitRangeItem) { errs = append(errs, checkPod(o, item)...) })
				}
			case *corev1.PersistentVolumeClaim:
				if a.Subresource == "" && a.Operation != registry.Delete {
					each(a.Namespace, func(item corev1.LimitRangeItem) {
						if item.Type == corev1.LimitTypePersistentVolumeClaim {
							errs = append(errs, within(item, o.Spec.Resources.Requests, nil)...)
						}
					})
				}
			}
			if len(errs) == 0 {
				return nil
			}
			return apierrors.NewForbidden(a.Resource.GroupResource(), a.Name, utilerrors.NewAggregate(errs))
		},
	}
}

func fillContainers(pod *corev1.Pod, item corev1.LimitRangeItem) {
	var told []string
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			c, what := &list[i], "container"
			if &list[0] != &pod.Spec.Containers[0] {
				what = "init container"
			}
			// A limit that is stated is the request too, before any default.
			if names := fill(&c.Resources.Requests, item.DefaultRequest); len(names) > 0 {
				told = append(told, fmt.Sprintf("%s request for %s %s", strings.Join(names, ", "), what, c.Name))
			}
			if names := fill(&c.Resources.Limits, item.Default); len(names) > 0 {
				told = append(told, fmt.Sprintf("%s limit for %s %s", strings.Join(names, ", "), what, c.Name))
			}
		}
	}
	if len(told) == 0 {
		return
	}
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[limitsAnnotation] = "LimitRanger plugin set: " + strings.Join(told, "; ")
}

// fill sets what is absent and returns its names.
func fill(into *corev1.ResourceList, defaults corev1.ResourceList) []string {
	var names []string
	for _, n := range slices.Sorted(maps.Keys(defaults)) {
		if _, ok := (*into)[n]; ok {
			continue
		}
		if *into == nil {
			*into = corev1.ResourceList{}
		}
		(*into)[n] = defaults[n]
		names = append(names, string(n))
	}
	return names
}

func checkPod(pod *corev1.Pod, item corev1.LimitRangeItem) (errs []error) {
	switch item.Type {
	case corev1.LimitTypeContainer:
		for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
			for _, c := range list {
				errs = append(errs, within(item, c.Resources.Requests, c.Resources.Limits)...)
			}
		}
	case corev1.LimitTypePod:
		opts := resourcehelper.PodResourcesOptions{ExcludeOverhead: true}
		errs = within(item, resourcehelper.PodRequests(pod, opts), resourcehelper.PodLimits(pod, opts))
	}
	return errs
}

// within holds requests and limits against the bounds of one item. A claim has
// requests alone, which both bounds are for.
func within(item corev1.LimitRangeItem, requests, limits corev1.ResourceList) []error {
	var errs []error
	upper, upperName := limits, "limit"
	if item.Type == corev1.LimitTypePersistentVolumeClaim {
		upper, upperName = requests, "request"
	}
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, n := range slices.Sorted(maps.Keys(item.Min)) {
		least := item.Min[n]
		request, ok := requests[n]
		limit, limited := limits[n]
		switch {
		case !ok:
			complain("minimum %s usage per %s is %s.  No request is specified", n, item.Type, least.String())
		case request.Cmp(least) < 0:
			complain("minimum %s usage per %s is %s, but request is %s", n, item.Type, least.String(), request.String())
		case limited && limit.Cmp(least) < 0:
			complain("minimum %s usage per %s is %s, but limit is %s", n, item.Type, least.String(), limit.String())
		}
	}
	for _, n := range slices.Sorted(maps.Keys(item.Max)) {
		most := item.Max[n]
		limit, ok := upper[n]
		request, requested := requests[n]
		switch {
		case !ok:
			complain("maximum %s usage per %s is %s.  No %s is specified", n, item.Type, most.String(), upperName)
		case limit.Cmp(most) > 0:
			complain("maximum %s usage per %s is %s, but %s is %s", n, item.Type, most.String(), upperName, limit.String())
		case requested && request.Cmp(most) > 0:
			complain("maximum %s usage per %s is %s, but request is %s", n, item.Type, most.String(), request.String())
		}
	}
	for _, n := range slices.Sorted(maps.Keys(item.MaxLimitRequestRatio)) {
		if err := ratio(n, item, requests, limits); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

func ratio(n corev1.ResourceName, item corev1.LimitRangeItem, requests, limits corev1.ResourceList) error {
	most := item.MaxLimitRequestRatio[n]
	request, requested := requests[n]
	limit, limited := limits[n]
	switch {
	case !requested || amount(request) == 0:
		return fmt.Errorf("%s max limit to request ratio per %s is %s, but no request is specified or request is 0", n, item.Type, most.String())
	case !limited || amount(limit) == 0:
		return fmt.Errorf("%s max limit to request ratio per %s is %s, but no limit is specified or limit is 0", n, item.Type, most.String())
	}
	if got := amount(limit) / amount(request); got > most.AsApproximateFloat64() {
		return fmt.Errorf("%s max limit to request ratio per %s is %s, but provided ratio is %f", n, item.Type, most.String(), got)
	}
	return nil
}

func amount(q resource.Quantity) float64 { return q.AsApproximateFloat64() }
