// Package namespace empties a terminating namespace and lets it go.
package namespace

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"

	"knarr.dev/knarr/client"
	"knarr.dev/knarr/controller/engine"
)

// New declares the controller. A terminating namespace is looked at again with
// every object that leaves it.
func New() engine.Controller {
	return engine.Controller{
		Name: "namespace-controller",
		Watches: []engine.Watch{
			{Resource: client.Namespaces, Keys: engine.Self},
			{All: true, Keys: contentChanged},
		},
		Writes: []engine.Write{
			{Verbs: []string{"delete"}},
			{Resource: client.Namespaces, Subresource: "status", Verbs: []string{"update"}},
			{Resource: client.Namespaces, Subresource: "finalize", Verbs: []string{"update"}},
		},
		Workers: 4,
		New: func(env *engine.Env) engine.Reconcile {
			return func(ctx context.Context, key engine.Key) (time.Duration, error) { return reconcile(ctx, env, key.Name) }
		},
	}
}

func contentChanged(env *engine.Env, ev client.Event) []engine.Key {
	name := ev.Object.GetNamespace()
	if name == "" {
		return nil
	}
	if ns, ok := env.Cache(client.Namespaces).Get("", name); !ok || ns.GetDeletionTimestamp() == nil {
		return nil
	}
	return []engine.Key{{Name: name}}
}

// remains is what is left in a namespace.
type remains struct {
	resources  map[string]int // "pods." and so on
	finalizers map[string]int
	failures   []string
	silent     error // some resources are not known, as their servers do not answer
}

func reconcile(ctx context.Context, env *engine.Env, name string) (time.Duration, error) {
	ns, ok := client.Cached[*corev1.Namespace](env.Cache(client.Namespaces), "", name)
	if !ok || ns.DeletionTimestamp == nil || !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		return 0, nil
	}
	infos, err := env.Client.Resources(ctx)
	if err != nil && !discovery.IsGroupDiscoveryFailedError(err) {
		return 0, fmt.Errorf("listing the resources to delete in namespace %s: %w", name, err)
	}
	left := remains{resources: map[string]int{}, finalizers: map[string]int{}, silent: err}
	// Pods go first: what they use, and policies that guard them, outlive them.
	empty(ctx, env, name, client.ResourceInfo{Resource: client.Pods}, &left)
	for _, info := range infos {
		if left.resources[remainsKey(client.Pods)] > 0 {
			break
		}
		if info.Namespaced && info.Resource != client.Pods && slices.Contains(info.Verbs, "delete") && slices.Contains(info.Verbs, "list") {
			empty(ctx, env, name, info, &left)
		}
	}
	k := client.Key{Resource: client.Namespaces, Name: name}
	if len(left.resources) == 0 && len(left.failures) == 0 && left.silent == nil {
		next := ns.DeepCopy()
		next.Spec.Finalizers = slices.DeleteFunc(next.Spec.Finalizers, func(f corev1.FinalizerName) bool { return f == corev1.FinalizerKubernetes })
		if _, err := env.Client.Update(ctx, k.Sub("finalize"), next); err != nil && !apierrors.IsNotFound(err) {
			return 0, fmt.Errorf("finalizing namespace %s: %w", name, err)
		}
		return 0, nil
	}
	next := ns.DeepCopy()
	next.Status.Phase = corev1.NamespaceTerminating
	next.Status.Conditions = conditions(ns.Status.Conditions, left, metav1.NewTime(env.Clock.Now()))
	if !equality.Semantic.DeepEqual(ns.Status, next.Status) {
		if _, err := env.Client.Update(ctx, k.Sub("status"), next); err != nil && !apierrors.IsConflict(err) {
			return 0, fmt.Errorf("writing the conditions of namespace %s: %w", name, err)
		}
	}
	if len(left.failures) > 0 {
		return 0, fmt.Errorf("deleting the content of namespace %s: %s", name, left.failures[0])
	}
	return 0, left.silent // else the next object that goes wakes us
}

// empty deletes the objects of one resource and notes what is left afterwards.
func empty(ctx context.Context, env *engine.Env, namespace string, info client.ResourceInfo, left *remains) {
	if err := env.WaitSynced(ctx, info); err != nil {
		left.failures = append(left.failures, err.Error())
		return
	}
	r := info.Resource
	cache := env.Cache(r)
	objs := client.ListCached[client.Object](cache, namespace, nil)
	background := metav1.DeletePropagationBackground
	_, err := engine.Parallel(len(objs), func(i int) error {
		if objs[i].GetDeletionTimestamp() != nil {
			return nil
		}
		k := client.Key{Resource: r, Namespace: namespace, Name: objs[i].GetName()}
		err := env.Client.Delete(ctx, k, metav1.DeleteOptions{PropagationPolicy: &background})
		if apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) {
			return nil
		}
		return err
	})
	if err != nil {
		left.failures = append(left.failures, err.Error())
	}
	if len(objs) == 0 {
		return
	}
	cache.List(namespace, nil, func(o client.Object) bool {
		left.resources[remainsKey(r)]++
		for _, f := range o.GetFinalizers() {
			left.finalizers[f]++
		}
		return true
	})
}

func remainsKey(r client.Resource) string { return r.Resource + "." + r.Group }

// conditions says what a namespace waits for.
func conditions(old []corev1.NamespaceCondition, left remains, now metav1.Time) []corev1.NamespaceCondition {
	list := func(m map[string]int, format string) string {
		var parts []string
		for what, n := range m {
			parts = append(parts, fmt.Sprintf(format, what, n))
		}
		sort.Strings(parts)
		return strings.Join(parts, ", ")
	}
	content := corev1.NamespaceCondition{Type: corev1.NamespaceDeletionContentFailure, Status: corev1.ConditionFalse, Reason: "ContentDeleted", Message: "All content successfully deleted, may be waiting on finalization"}
	if len(left.failures) > 0 {
		content.Status, content.Reason = corev1.ConditionTrue, "ContentDeletionFailed"
		content.Message = "Failed to delete all resource types, " + fmt.Sprint(len(left.failures)) + " remaining: " + strings.Join(left.failures, ", ")
	}
	remain := corev1.NamespaceCondition{Type: corev1.NamespaceContentRemaining, Status: corev1.ConditionFalse, Reason: "ContentRemoved", Message: "All content successfully removed"}
	if len(left.resources) > 0 {
		remain.Status, remain.Reason = corev1.ConditionTrue, "SomeResourcesRemain"
		remain.Message = "Some resources are remaining: " + list(left.resources, "%s has %d resource instances")
	}
	final := corev1.NamespaceCondition{Type: corev1.NamespaceFinalizersRemaining, Status: corev1.ConditionFalse, Reason: "ContentHasNoFinalizers", Message: "All content-preserving finalizers finished"}
	if len(left.finalizers) > 0 {
		final.Status, final.Reason = corev1.ConditionTrue, "SomeFinalizersRemain"
		final.Message = "Some content in the namespace has finalizers remaining: " + list(left.finalizers, "%s in %d resource instances")
	}
	found := corev1.NamespaceCondition{Type: corev1.NamespaceDeletionDiscoveryFailure, Status: corev1.ConditionFalse, Reason: "ResourcesDiscovered", Message: "All resources successfully discovered"}
	if groups, silent := discovery.GroupDiscoveryFailedErrorGroups(left.silent); silent {
		found.Status, found.Reason = corev1.ConditionTrue, "DiscoveryFailed"
		found.Message = fmt.Sprintf("Discovery failed for some groups, %d failing: %v", len(groups), left.silent)
	}
	out := []corev1.NamespaceCondition{
		found,
		{Type: corev1.NamespaceDeletionGVParsingFailure, Status: corev1.ConditionFalse, Reason: "ParsedGroupVersions", Message: "All legacy kube types successfully parsed"},
		content, remain, final,
	}
	for i := range out {
		out[i].LastTransitionTime = now
		for _, o := range old {
			if o.Type == out[i].Type && o.Status == out[i].Status {
				out[i].LastTransitionTime = o.LastTransitionTime
			}
		}
	}
	return out
}
