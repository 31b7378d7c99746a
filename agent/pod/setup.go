package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/userns"
	"knarr.dev/knarr/agent/view"
)

// Delays between attempts of a failed step.
const (
	firstRetry = 500 * time.Millisecond
	maxRetry   = 2*time.Minute + 2*time.Second
)

// step is a condition of starting containers. Steps that are not done run side
// by side, and again after a failure.
type step struct {
	name   string
	reason string // of the event that reports a failure
	done   func() bool
	// run does the work outside the actor; what it returns is applied inside.
	run func(ctx context.Context) (apply func(), err error)

	delay  time.Duration
	retry  time.Time
	failed string // why it failed last; empty: it did not
}

// steps is the list of everything that must stand before a container starts. To
// add one, write its function and add a line; undoing belongs into cleanup.
func (a *Actor) steps() []*step {
	return []*step{
		{name: "volumes", reason: "FailedMount", done: func() bool { return a.volumes != nil }, run: a.prepareVolumes()},
		{name: "claims", reason: "FailedPrepareDynamicResources", done: func() bool { return a.claimed || len(a.pod.Spec.ResourceClaims) == 0 }, run: a.prepareClaims()},
		{name: "sandbox", reason: "FailedCreatePodSandBox", done: func() bool { return a.view.Ready() != nil }, run: a.runSandbox()},
	}
}

// prepare starts the steps that are due and reports whether all are done.
func (a *Actor) prepare() bool {
	all := true
	for _, s := range a.setup {
		if s.done() {
			continue
		}
		all = false
		if a.d.Clock.Now().Before(s.retry) {
			a.at(s.retry)
			continue
		}
		run := s.run
		a.do("setup/"+s.name, true, func(ctx context.Context) func() {
			apply, err := run(ctx)
			return func() {
				if apply != nil {
					apply()
				}
				if err != nil && !a.stopping {
					s.fails(a, err)
				} else {
					s.delay, s.retry, s.failed = 0, time.Time{}, ""
					a.timeline.mark(s.name)
				}
			}
		})
	}
	return all
}

func (s *step) fails(a *Actor, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	s.delay = min(max(2*s.delay, firstRetry), maxRetry)
	s.retry = a.d.Clock.Now().Add(s.delay)
	s.failed = err.Error()
	a.event(corev1.EventTypeWarning, s.reason, err.Error())
}

// blocked says what keeps the containers from being made, and when it is tried again.
func (a *Actor) blocked() string {
	var out []string
	for _, s := range a.setup {
		if s.failed != "" && !s.done() {
			out = append(out, fmt.Sprintf("%s: %s; next try at %s", s.reason, s.failed, s.retry.UTC().Format(time.RFC3339)))
		}
	}
	return strings.Join(out, "\n")
}

// retryNow makes failed work due at once.
func (a *Actor) retryNow() {
	for _, s := range a.setup {
		s.retry = time.Time{}
	}
	for name, w := range a.waiting {
		if w.Reason == reasonConfig {
			delete(a.retry, name)
		}
	}
}

func (a *Actor) prepareVolumes() func(context.Context) (func(), error) {
	return func(ctx context.Context) (func(), error) {
		pod, _ := a.Snapshot()
		ready, refresh, err := a.d.Volumes.Prepare(ctx, pod)
		if err != nil {
			return nil, err
		}
		return func() { a.volumes, a.fetchAgain = ready, refresh }, nil
	}
}

func (a *Actor) prepareClaims() func(context.Context) (func(), error) {
	return func(ctx context.Context) (func(), error) {
		if a.d.Claims == nil {
			return nil, errors.New("Failed to prepare dynamic resources: this node has no plugins")
		}
		pod, _ := a.Snapshot()
		if err := a.d.Claims.Prepare(ctx, pod); err != nil {
			return nil, fmt.Errorf("Failed to prepare dynamic resources: %w", err)
		}
		return func() { a.claimed = true }, nil
	}
}

// updateVolumes brings volumes that show API objects up to date.
func (a *Actor) updateVolumes() {
	if a.volumes == nil || a.stopping {
		return
	}
	pod, _ := a.Snapshot()
	pod.Labels, pod.Annotations = a.pod.Labels, a.pod.Annotations
	if t := a.tasks["update"]; t != nil {
		// The running update may have read the old content.
		a.fetchAgain = a.d.Clock.Now()
		return
	}
	a.fetchAgain = time.Time{}
	a.do("update", true, func(ctx context.Context) func() {
		refresh, err := a.d.Volumes.Update(ctx, pod)
		return func() {
			if err != nil && !a.stopping {
				a.event(corev1.EventTypeWarning, "FailedMount", err.Error())
				refresh = a.d.Clock.Now().Add(maxRetry)
			}
			if a.fetchAgain.IsZero() {
				a.fetchAgain = refresh
			}
		}
	})
}

func (a *Actor) runSandbox() func(context.Context) (func(), error) {
	return func(ctx context.Context) (func(), error) {
		pod, v := a.Snapshot()
		apply, err := a.makeSandbox(ctx, pod, v)
		a.d.Metrics.PodStarting(userns.Wanted(pod), err)
		return apply, err
	}
}

// makeSandbox makes a sandbox in the place of those of v.
func (a *Actor) makeSandbox(ctx context.Context, pod *corev1.Pod, v *view.Pod) (func(), error) {
	var attempt uint32
	for _, old := range v.Sandboxes {
		attempt = max(attempt, old.GetMetadata().GetAttempt()+1)
	}
	handler, err := a.d.runtimeHandler(ctx, pod)
	if err != nil {
		return nil, err
	}
	if err := a.d.checkUsers(ctx, pod, handler); err != nil {
		return nil, err
	}
	cfg, err := a.d.sandboxConfig(pod, attempt)
	if err != nil {
		return nil, err
	}
	for _, old := range v.Sandboxes {
		// A sandbox that died keeps nothing; its containers were stopped before.
		if _, err := a.d.CRI.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: old.Id}); err != nil {
			return nil, fmt.Errorf("stop the old sandbox %s: %w", old.Id, err)
		}
	}
	if a.d.Groups != nil {
		if err := a.d.Groups.Apply(cfg.Linux.CgroupParent, podspec.GroupResources(cfg.Linux)); err != nil {
			return nil, err
		}
	}
	resp, err := a.d.CRI.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: cfg, RuntimeHandler: handler})
	if err != nil {
		// Some runtimes keep what they could not finish; the next attempt must not
		// bear its number.
		return a.relist, fmt.Errorf("Failed to create pod sandbox: %s", status.Convert(err).Message())
	}
	st, err := view.Sandbox(ctx, a.d.CRI, resp.PodSandboxId)
	if err != nil || st == nil {
		return nil, fmt.Errorf("sandbox %s vanished after its creation: %w", resp.PodSandboxId, err)
	}
	return func() { a.seeSandbox(st) }, nil
}

// sandboxConfig builds the sandbox's configuration and its log directory.
func (d *Deps) sandboxConfig(pod *corev1.Pod, attempt uint32) (*runtimeapi.PodSandboxConfig, error) {
	dir := podspec.LogDir(d.LogRoot, pod.Namespace, pod.Name, string(pod.UID))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the log directory of the pod: %w", err)
	}
	host, err := podspec.ReadResolvConf(d.ResolvConf)
	if err != nil {
		return nil, fmt.Errorf("read the node's resolver configuration: %w", err)
	}
	users, err := d.users(pod)
	if err != nil {
		return nil, err
	}
	cfg := podspec.Sandbox(pod, podspec.SandboxOptions{
		Attempt: attempt, LogDir: dir, CgroupRoot: d.CgroupRoot, Tasks: d.PodPids, ClusterDomain: d.ClusterDomain, Users: users,
		DNS: podspec.DNS(pod, host, d.ClusterDNS, d.ClusterDomain),
	})
	alone := d.alone(pod)
	podspec.Containers(pod, func(c *corev1.Container, _ bool) {
		if alone(c.Name) {
			cfg.Linux.Resources.CpuQuota = 0 // nor is the whole pod
		}
	})
	return cfg, nil
}

// writeHosts writes the pod's hosts file; pods see changes of it at once because
// it is written in place.
func (d *Deps) writeHosts(pod *corev1.Pod, ips []string) (string, error) {
	var host []byte
	if pod.Spec.HostNetwork {
		var err error
		if host, err = os.ReadFile("/etc/hosts"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("read the node's hosts file: %w", err)
		}
	}
	path := filepath.Join(d.Volumes.PodDir(string(pod.UID)), "etc-hosts")
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return "", err
	}
	if err := os.WriteFile(path, podspec.Hosts(pod, host, ips, d.ClusterDomain), 0o644); err != nil {
		return "", fmt.Errorf("write the pod's hosts file: %w", err)
	}
	return path, nil
}
