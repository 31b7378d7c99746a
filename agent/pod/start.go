package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	grpcstatus "google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"knarr.dev/knarr/agent/images"
	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/status"
	"knarr.dev/knarr/agent/userns"
	"knarr.dev/knarr/agent/view"
)

// Reasons of a container that could not be started.
const (
	reasonConfig    = "CreateContainerConfigError"
	reasonCreate    = "CreateContainerError"
	reasonRun       = "RunContainerError"
	reasonPostStart = "PostStartHookError"
)

// startLimit bounds a container's start, as kubelets bound the runtime's answers.
const startLimit = 2 * time.Minute

// startRetry is the pause before another attempt to make a container.
const startRetry = 5 * time.Second

// pulled is an image that is on the node for a container's next start.
type pulled struct{ *images.Image }

// startError says how far a start came.
type startError struct{ reason, message string }

func (e *startError) Error() string { return e.reason + ": " + e.message }

// fetch ensures a container's image.
func (a *Actor) fetch(c *corev1.Container) {
	pod := a.pod
	a.do("image/"+c.Name, true, func(ctx context.Context) func() {
		began := a.d.Clock.Now()
		img, err := a.d.ensureImage(ctx, pod, c)
		end := a.d.Clock.Now()
		return func() {
			a.pulls = a.pulls.with(began, end)
			var ie *images.Error
			switch {
			case err == nil:
				a.images[c.Name] = &pulled{img}
				a.timeline.mark("image")
				if a.waiting[c.Name].Reason != reasonRun {
					delete(a.waiting, c.Name)
				}
			case errors.As(err, &ie):
				if a.waiting[c.Name].Reason != ie.Reason {
					a.event(corev1.EventTypeWarning, "Failed", "Error: "+ie.Reason)
				}
				a.waiting[c.Name] = status.Waiting{Reason: ie.Reason, Message: ie.Message}
				a.retry[c.Name] = ie.Retry
				if ie.Retry.IsZero() {
					a.retry[c.Name] = a.d.Clock.Now().Add(maxRetry)
				}
			}
		}
	})
}

func (d *Deps) ensureImage(ctx context.Context, pod *corev1.Pod, c *corev1.Container) (*images.Image, error) {
	return d.Ensure(ctx, pod, c.Image, c.ImagePullPolicy)
}

// Ensure makes sure of an image with the pod's credentials and reports to the
// pod. The error is an *images.Error unless ctx ended.
func (d *Deps) Ensure(ctx context.Context, pod *corev1.Pod, image string, policy corev1.PullPolicy) (*images.Image, error) {
	var secrets []*corev1.Secret
	for _, ref := range pod.Spec.ImagePullSecrets {
		s, err := d.Objects.Secret(ctx, pod.Namespace, ref.Name)
		if err != nil {
			d.Recorder.Event(pod, corev1.EventTypeWarning, "FailedToRetrieveImagePullSecret",
				fmt.Sprintf("Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", ref.Name))
			continue
		}
		secrets = append(secrets, s)
	}
	return d.Images.Ensure(ctx, images.Request{
		PodUID: string(pod.UID), Pod: pod, Image: image, Policy: policy, Secrets: secrets,
		Event: func(t, reason, message string) { d.Recorder.Event(pod, t, reason, message) },
	})
}

// start makes and starts a container whose image, volumes and sandbox stand.
func (a *Actor) start(c *corev1.Container) {
	pod, _ := a.Snapshot()
	img, sandbox, last := a.images[c.Name], a.view.Ready(), a.view.Latest(c.Name)
	// The image is looked at again for the next attempt.
	delete(a.images, c.Name)
	attempt := 0
	if last != nil {
		attempt = last.Restarts() + 1
		if last.Exited() {
			a.restarting(c.Name, last)
		}
	} else if n, seen := restartsShown(pod, c.Name); seen {
		attempt = n + 1
	}
	pod.Status.PodIP, pod.Status.PodIPs = "", nil
	ips := view.IPs(sandbox)
	if pod.Spec.HostNetwork {
		ips = a.d.NodeIPs
	}
	for i, ip := range ips {
		if i == 0 {
			pod.Status.PodIP = ip
		}
		pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	s := starting{life: a.ctx, d: a.d, pod: pod, c: c, image: img.Image, sandbox: sandbox, ips: ips, volumes: a.volumes,
		attempt: attempt, target: a.targetOf(c.Name), message: a.terminationPath(c.Name, attempt), mark: a.timeline.mark}
	kind := podspec.ContainerKind(pod, c.Name)
	a.do("start/"+c.Name, true, func(ctx context.Context) func() {
		st, err := s.run(ctx)
		var se *startError
		if errors.As(err, &se) {
			a.d.Metrics.ContainerStarted(kind, se.reason)
			if userns.Wanted(pod) {
				a.d.Metrics.UsersFailed()
			}
		} else if err == nil {
			a.d.Metrics.ContainerStarted(kind, "")
		}
		return func() { a.began(c, sandbox.Id, st, err) }
	})
}

// began applies the outcome of a start.
func (a *Actor) began(c *corev1.Container, sandbox string, st *runtimeapi.ContainerStatus, err error) {
	if st != nil {
		a.see(&view.Container{ContainerStatus: st, SandboxID: sandbox})
	}
	var se *startError
	if errors.As(err, &se) {
		a.waiting[c.Name] = status.Waiting{Reason: se.reason, Message: se.message}
		a.retry[c.Name] = a.d.Clock.Now().Add(startRetry)
		if st != nil {
			// The dead container is there: the crash back-off governs, once the
			// reason has been shown.
			a.retry[c.Name] = a.d.Clock.Now().Add(time.Second)
		}
		return
	}
	if err != nil || st == nil {
		return
	}
	delete(a.waiting, c.Name)
	delete(a.retry, c.Name)
	a.prune(c.Name)
	if c.Lifecycle != nil && c.Lifecycle.PostStart != nil && st.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
		a.postStart(c, st.Id)
		return
	}
	a.hooked[st.Id] = true
}

// restartsShown reads the count of a container that the runtime no longer has.
func restartsShown(pod *corev1.Pod, name string) (int, bool) {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, st := range list {
			if st.Name == name && st.ContainerID != "" {
				return int(st.RestartCount), true
			}
		}
	}
	return 0, false
}

// targetOf is the container whose processes an ephemeral container sees.
func (a *Actor) targetOf(name string) string {
	for i := range a.pod.Spec.EphemeralContainers {
		e := &a.pod.Spec.EphemeralContainers[i]
		if e.Name == name && e.TargetContainerName != "" {
			if t := a.view.Latest(e.TargetContainerName); t != nil {
				return t.Id
			}
		}
	}
	return ""
}

// prune removes all but the newest dead container of a name, with their logs.
func (a *Actor) prune(name string) {
	list := a.view.Containers[name]
	if len(list) <= 2 {
		return
	}
	old := list[2:]
	dir := a.logDir()
	a.do("prune/"+name, false, func(ctx context.Context) func() {
		var gone []string
		for _, c := range old {
			if _, err := a.d.CRI.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.Id}); err != nil {
				continue
			}
			gone = append(gone, c.Id)
			a.d.unlinkLog(c)
			removeLogs(filepath.Join(dir, podspec.LogPath(name, c.Restarts())))
		}
		return func() {
			for _, id := range gone {
				a.forget(id)
			}
		}
	})
}

func removeLogs(path string) {
	rotated, _ := filepath.Glob(path + "*")
	for _, p := range rotated {
		_ = os.Remove(p)
	}
}

// starting carries what the start of one container needs.
type starting struct {
	life    context.Context // of the actor
	d       *Deps
	pod     *corev1.Pod
	c       *corev1.Container
	image   *images.Image
	sandbox *runtimeapi.PodSandboxStatus
	ips     []string
	volumes map[string]string
	attempt int
	target  string
	message string // termination message file
	mark    func(phase string)
}

// run creates and starts the container. A status without error is that of a
// started container; with an error it is that of one which failed to start.
func (s *starting) run(ctx context.Context) (*runtimeapi.ContainerStatus, error) {
	cfg, err := s.config(ctx)
	if err != nil {
		return nil, s.fail(ctx, reasonConfig, err)
	}
	box, err := s.d.sandboxConfig(s.pod, s.sandbox.GetMetadata().GetAttempt())
	if err != nil {
		return nil, s.fail(ctx, reasonCreate, err)
	}
	resp, err := s.d.CRI.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: s.sandbox.Id, Config: cfg, SandboxConfig: box})
	if err != nil {
		return nil, s.fail(ctx, reasonCreate, err)
	}
	s.mark("created")
	s.event(corev1.EventTypeNormal, "Created", "Container created")
	// A pod that is deleted now must not have its container's start cut off, which would
	// be shown as its failure: it is stopped when it has started.
	began, cancel := context.WithTimeout(s.life, startLimit)
	defer cancel()
	_, startErr := s.d.CRI.Runtime.StartContainer(began, &runtimeapi.StartContainerRequest{ContainerId: resp.ContainerId})
	// Whatever happened, the state must be known, also when work has ended.
	st, err := view.Status(context.WithoutCancel(ctx), s.d.CRI, resp.ContainerId)
	if startErr != nil {
		return st, s.fail(ctx, reasonRun, startErr)
	}
	if err != nil {
		return nil, err
	}
	s.d.linkLog(s.pod, st)
	s.mark("started")
	s.event(corev1.EventTypeNormal, "Started", "Container started")
	return st, nil
}

func (s *starting) event(eventType, reason, message string) {
	s.d.Recorder.Event(s.pod, eventType, reason, message)
}

func (s *starting) fail(ctx context.Context, reason string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	text := err.Error()
	if st, ok := grpcstatus.FromError(err); ok {
		text = st.Message()
	}
	s.event(corev1.EventTypeWarning, "Failed", "Error: "+text)
	return &startError{reason: reason, message: text}
}

// config builds the container's configuration.
func (s *starting) config(ctx context.Context) (*runtimeapi.ContainerConfig, error) {
	pod, c := s.pod, s.c
	if err := podspec.VerifyNonRoot(pod, c, s.image.UID, s.image.Username); err != nil {
		return nil, err
	}
	vars, list, err := s.environment(ctx)
	if err != nil {
		return nil, err
	}
	mounts, err := s.mounts(vars)
	if err != nil {
		return nil, err
	}
	users, err := s.d.users(pod)
	if err != nil {
		return nil, err
	}
	mapOwners(mounts, users)
	cfg := &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: uint32(s.attempt)},
		Image:       &runtimeapi.ImageSpec{Image: s.image.Ref, UserSpecifiedImage: c.Image},
		Command:     expand(c.Command, vars),
		Args:        expand(c.Args, vars),
		WorkingDir:  c.WorkingDir,
		Envs:        list,
		Mounts:      mounts,
		Labels:      podspec.ContainerLabels(pod, c.Name),
		Annotations: podspec.ContainerAnnotations(pod, c, s.attempt),
		LogPath:     podspec.LogPath(c.Name, s.attempt),
		Stdin:       c.Stdin,
		StdinOnce:   c.StdinOnce,
		Tty:         c.TTY,
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       podspec.LinuxResources(pod, c, s.d.Memory),
			SecurityContext: podspec.ContainerSecurity(pod, c, s.image.UID, s.image.Username, s.target, s.d.SeccompDefault),
		},
	}
	cfg.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users
	if s.d.alone(pod)(c.Name) {
		cfg.Linux.Resources.CpuQuota = 0 // who has CPUs alone is not held up on them
	}
	s.d.Swap.Apply(cfg.Linux.Resources, pod, c, s.d.Memory)
	if s.d.EndTogether {
		podspec.EndTogether(cfg.Linux.Resources)
	}
	podspec.LimitPages(cfg.Linux.Resources, s.d.HugePages)
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		cfg.StopSignal = runtimeapi.Signal(runtimeapi.Signal_value[string(*c.Lifecycle.StopSignal)])
	}
	if s.d.Resources != nil {
		g, err := s.d.Resources.Grant(ctx, pod, c.Name)
		if err != nil {
			return nil, err
		}
		g.Apply(cfg)
	}
	if s.d.Claims != nil {
		s.d.Claims.Grant(pod, c.Name).Apply(cfg)
	}
	if err := os.MkdirAll(filepath.Join(podspec.LogDir(s.d.LogRoot, pod.Namespace, pod.Name, string(pod.UID)), c.Name), 0o755); err != nil {
		return nil, fmt.Errorf("make the container's log directory: %w", err)
	}
	return cfg, nil
}

// runtimeHandler resolves the pod's RuntimeClass.
func (d *Deps) runtimeHandler(ctx context.Context, pod *corev1.Pod) (string, error) {
	name := pod.Spec.RuntimeClassName
	if name == nil || *name == "" {
		return "", nil
	}
	handler, err := d.handlerOf(ctx, *name)
	if err != nil {
		return "", fmt.Errorf("RuntimeClass %q: %w", *name, err)
	}
	return strings.TrimSpace(handler), nil
}
