// Package images makes sure that a container's image is on the node: it applies
// the pull policy, finds credentials, joins pulls of the same image, and backs
// off after failures.
package images

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/agent/credentials"
	"knarr.dev/knarr/cri"
)

// Reasons of Error, as a container's waiting state shows them.
const (
	ErrImagePull      = "ErrImagePull"
	ImagePullBackOff  = "ImagePullBackOff"
	ErrImageNeverPull = "ErrImageNeverPull"
	InvalidImageName  = "InvalidImageName"
	ImageInspectError = "ImageInspectError"
)

// Back-off after failed pulls of one image by one pod.
const (
	firstBackoff = 10 * time.Second
	maxBackoff   = 5 * time.Minute
	// settle is how long ErrImagePull is shown before ImagePullBackOff.
	settle = time.Second
)

// maxPulls bounds how many images are pulled at once.
const maxPulls = 8

// Error says why an image is not there.
type Error struct {
	Reason, Message string
	// Retry is when Ensure may have another answer; zero: never by itself.
	Retry time.Time
}

func (e *Error) Error() string { return e.Reason + ": " + e.Message }

// EventFunc reports what happens to the container that waits for the image.
type EventFunc func(eventType, reason, message string)

// Manager ensures images. Make one with New.
type Manager struct {
	images runtimeapi.ImageServiceClient
	keys   Keyring
	clock  clock.PassiveClock
	slots  *semaphore.Weighted

	mu       sync.Mutex
	pulls    map[string]*pull
	backoffs map[string]*backoff
}

// pull is one transfer in flight, shared by all who want the image with the same
// credentials.
type pull struct {
	done chan struct{}
	ref  string
	size uint64
	err  error
}

type backoff struct {
	delay time.Duration
	// failed is the time of the last failure; told whether its BackOff event has
	// been reported.
	failed time.Time
	cause  string
	told   bool
}

// Keyring finds the node's own credentials for an image, after those of the pod's
// secrets. What is found beside an error counts.
type Keyring func(ctx context.Context, image string, pod *corev1.Pod) ([]*runtimeapi.AuthConfig, error)

// New returns a manager that pulls through c. keys nil means that the node has no
// credentials.
func New(c *cri.Client, keys Keyring, clk clock.PassiveClock) *Manager {
	return &Manager{images: c.Images, keys: keys, clock: clk, slots: semaphore.NewWeighted(maxPulls),
		pulls: map[string]*pull{}, backoffs: map[string]*backoff{}}
}

// Image is an image that is on the node.
type Image struct {
	Ref      string // what containers are created from
	UID      *int64 // the image's numeric user; nil: none or by name
	Username string
}

// Request is one container's need of an image.
type Request struct {
	PodUID  string
	Image   string // as the pod names it
	Policy  corev1.PullPolicy
	Pod     *corev1.Pod // whose container it is
	Secrets []*corev1.Secret
	Sandbox *runtimeapi.PodSandboxConfig
	Event   EventFunc
}

// Ensure returns the image, pulling it if the policy asks for that. The error is
// an *Error unless ctx ended; a pull in flight goes on without its waiters.
func (m *Manager) Ensure(ctx context.Context, r Request) (*Image, error) {
	if err := checkName(r.Image); err != nil {
		msg := fmt.Sprintf("Failed to apply default image tag %q: %v", r.Image, err)
		r.Event(corev1.EventTypeWarning, "InspectFailed", msg)
		return nil, &Error{Reason: InvalidImageName, Message: msg}
	}
	spec := &runtimeapi.ImageSpec{Image: withTag(r.Image), UserSpecifiedImage: r.Image}
	present, err := m.inspect(ctx, spec)
	if err != nil {
		msg := fmt.Sprintf("Failed to inspect image %q: %v", r.Image, err)
		r.Event(corev1.EventTypeWarning, "InspectFailed", msg)
		return nil, &Error{Reason: ImageInspectError, Message: msg, Retry: m.clock.Now().Add(settle)}
	}
	if r.Policy == corev1.PullNever || present != nil && r.Policy != corev1.PullAlways {
		if present == nil {
			msg := fmt.Sprintf("Container image %q is not present with pull policy of Never", r.Image)
			r.Event(corev1.EventTypeWarning, ErrImageNeverPull, msg)
			return nil, &Error{Reason: ErrImageNeverPull, Message: msg, Retry: m.clock.Now().Add(firstBackoff)}
		}
		r.Event(corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Container image %q already present on machine and can be accessed by the pod", r.Image))
		return present, nil
	}
	if err := m.held(r); err != nil {
		return nil, err
	}
	r.Event(corev1.EventTypeNormal, "Pulling", fmt.Sprintf("Pulling image %q", r.Image))
	start := m.clock.Now()
	auths, missing := credentials.FromSecrets(r.Image, r.Secrets)
	if m.keys != nil {
		more, err := m.keys(ctx, r.Image, r.Pod)
		auths, missing = append(auths, more...), errors.Join(missing, err)
	}
	p := m.join(ctx, spec, r, auths)
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if p.err != nil {
		return nil, m.failed(r, p.err, missing)
	}
	took := m.clock.Since(start).Truncate(time.Millisecond)
	img, err := m.inspect(ctx, spec)
	if err != nil || img == nil {
		img = &Image{Ref: p.ref}
	}
	if img.Ref == "" {
		img.Ref = p.ref
	}
	m.mu.Lock()
	delete(m.backoffs, r.PodUID+"_"+r.Image)
	m.mu.Unlock()
	r.Event(corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Successfully pulled image %q in %v (%v including waiting). Image size: %v bytes.", r.Image, took, took, p.size))
	return img, nil
}

// Forget drops a pod's back-off.
func (m *Manager) Forget(podUID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k := range m.backoffs {
		if len(k) > len(podUID) && k[:len(podUID)+1] == podUID+"_" {
			delete(m.backoffs, k)
		}
	}
}

func (m *Manager) inspect(ctx context.Context, spec *runtimeapi.ImageSpec) (*Image, error) {
	resp, err := m.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
	if err != nil {
		return nil, errors.New(status.Convert(err).Message())
	}
	if resp.Image == nil {
		return nil, nil
	}
	img := &Image{Ref: resp.Image.Id, Username: resp.Image.Username}
	if resp.Image.Uid != nil {
		img.UID = &resp.Image.Uid.Value
	} else if img.Username == "" {
		// An image without a user runs as root.
		img.UID = new(int64)
	}
	return img, nil
}

// held refuses a pull that backs off.
func (m *Manager) held(r Request) error {
	m.mu.Lock()
	b := m.backoffs[r.PodUID+"_"+r.Image]
	if b == nil || !m.clock.Now().Before(b.failed.Add(b.delay)) {
		m.mu.Unlock()
		return nil
	}
	tell := !b.told
	b.told = true
	msg := fmt.Sprintf("Back-off pulling image %q", r.Image)
	err := &Error{Reason: ImagePullBackOff, Message: fmt.Sprintf("%s: %s: %s", msg, ErrImagePull, b.cause), Retry: b.failed.Add(b.delay)}
	m.mu.Unlock()
	if tell {
		r.Event(corev1.EventTypeNormal, "BackOff", msg)
	}
	return err
}

// failed notes a failure; missing is why some credentials are not known, which may be
// the cause.
func (m *Manager) failed(r Request, cause, missing error) error {
	text := status.Convert(cause).Message()
	if missing != nil {
		text += "; " + missing.Error()
	}
	m.mu.Lock()
	key := r.PodUID + "_" + r.Image
	b := m.backoffs[key]
	if b == nil {
		b = &backoff{delay: firstBackoff}
		m.backoffs[key] = b
	} else {
		b.delay = min(2*b.delay, maxBackoff)
	}
	b.failed, b.cause, b.told = m.clock.Now(), text, false
	retry := b.failed.Add(settle)
	m.mu.Unlock()
	r.Event(corev1.EventTypeWarning, "Failed", fmt.Sprintf("Failed to pull image %q: %s", r.Image, text))
	return &Error{Reason: ErrImagePull, Message: text, Retry: retry}
}

// join starts a pull or finds the one under way.
func (m *Manager) join(ctx context.Context, spec *runtimeapi.ImageSpec, r Request, auths []*runtimeapi.AuthConfig) *pull {
	key := spec.Image
	for _, a := range auths {
		key += "\x00" + a.Username + "\x00" + a.Password + "\x00" + a.IdentityToken
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.pulls[key]; p != nil {
		return p
	}
	p := &pull{done: make(chan struct{})}
	m.pulls[key] = p
	ctx = context.WithoutCancel(ctx)
	go func() {
		defer func() {
			m.mu.Lock()
			delete(m.pulls, key)
			m.mu.Unlock()
			close(p.done)
		}()
		if p.err = m.slots.Acquire(ctx, 1); p.err != nil {
			return
		}
		defer m.slots.Release(1)
		p.ref, p.err = m.pull(ctx, spec, auths, r.Sandbox)
		if p.err != nil {
			return
		}
		if st, err := m.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec}); err == nil {
			p.size = st.Image.GetSize()
		}
	}()
	return p
}

// pull tries each credential until one works.
func (m *Manager) pull(ctx context.Context, spec *runtimeapi.ImageSpec, auths []*runtimeapi.AuthConfig, sandbox *runtimeapi.PodSandboxConfig) (string, error) {
	if len(auths) == 0 {
		auths = []*runtimeapi.AuthConfig{nil}
	}
	var errs []error
	for _, a := range auths {
		resp, err := m.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec, Auth: a, SandboxConfig: sandbox})
		if err == nil {
			return resp.ImageRef, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 1 {
		return "", errs[0]
	}
	return "", errors.Join(errs...)
}
