// Package images makes sure that a container's image is on the node: it applies
// the pull policy, finds credentials, joins pulls of the same image, and backs
// off after failures. It remembers with whose credentials images were pulled, so that
// no pod uses one that it could not pull itself.
package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
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
	images  runtimeapi.ImageServiceClient
	keys    Keyring
	account Accounts
	verify  Verification
	clock   clock.PassiveClock
	log     *slog.Logger
	slots   *semaphore.Weighted
	records *records
	began   time.Time

	settled  atomic.Bool // what earlier runs began is known to have ended
	settling sync.Mutex

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
type Keyring func(ctx context.Context, image string, pod *corev1.Pod) ([]credentials.Credential, error)

// Accounts finds the service account with which a pod may have pulled an image; nil: none.
type Accounts func(ctx context.Context, image string, pod *corev1.Pod) (*credentials.Origin, error)

// Config is what a Manager needs. CRI, Root and Clock are required.
type Config struct {
	CRI *cri.Client
	// Root holds the records of pulled images: pulling and pulled.
	Root    string
	Keys    Keyring  // nil: the node has no credentials
	Account Accounts // nil: no credentials belong to service accounts
	Verify  Verification
	Clock   clock.PassiveClock
	Log     *slog.Logger // nil: nothing is logged
}

// New returns a manager, which knows what those before it have recorded below Root. A
// record that cannot be read is told in the log; the error is that of the folder.
func New(cfg Config) (*Manager, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	r, err := openRecords(cfg.Root, cfg.Clock, cfg.Log)
	if err != nil {
		return nil, err
	}
	return &Manager{images: cfg.CRI.Images, keys: cfg.Keys, account: cfg.Account, verify: cfg.Verify, clock: cfg.Clock, log: cfg.Log,
		slots: semaphore.NewWeighted(maxPulls), records: r, began: cfg.Clock.Now(), pulls: map[string]*pull{}, backoffs: map[string]*backoff{}}, nil
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

// Ensure returns the image, pulling it if the policy asks for that, or if nothing shows
// that the pod may have it: then its registry decides. The error is an *Error unless ctx ended; a pull in flight goes on without its waiters.
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
	if present != nil && r.Policy != corev1.PullAlways && m.permitted(ctx, r, present.Ref) {
		r.Event(corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Container image %q already present on machine and can be accessed by the pod", r.Image))
		return present, nil
	}
	if r.Policy == corev1.PullNever {
		msg := fmt.Sprintf("Container image %q is not present with pull policy of Never", r.Image)
		if present != nil {
			msg = fmt.Sprintf("Container image %q is present with pull policy of Never but cannot be accessed by the pod: it was pulled with credentials that the pod does not have", r.Image)
		}
		r.Event(corev1.EventTypeWarning, ErrImageNeverPull, msg)
		return nil, &Error{Reason: ErrImageNeverPull, Message: msg, Retry: m.clock.Now().Add(firstBackoff)}
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
func (m *Manager) join(ctx context.Context, spec *runtimeapi.ImageSpec, r Request, auths []credentials.Credential) *pull {
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
		if p.err = m.records.begin(spec.Image); p.err != nil {
			return
		}
		var used *credentials.Credential
		defer func() { m.records.end(spec.Image, p.ref, used) }()
		p.ref, used, p.err = m.pull(ctx, spec, auths, r.Sandbox)
		if p.err != nil {
			return
		}
		// Who finds the image here looks it up by its ID, which may not be what the pull
		// answered; the name may be another image's by now.
		for _, n := range []string{p.ref, spec.Image} {
			st, err := m.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: n}})
			if err == nil && st.Image != nil {
				p.ref, p.size = cmp.Or(st.Image.Id, p.ref), st.Image.Size
				return
			}
		}
	}()
	return p
}

// pull tries each credential until one works, which it returns.
func (m *Manager) pull(ctx context.Context, spec *runtimeapi.ImageSpec, auths []credentials.Credential, sandbox *runtimeapi.PodSandboxConfig) (string, *credentials.Credential, error) {
	if len(auths) == 0 {
		auths = []credentials.Credential{{}} // anonymously
	}
	var errs []error
	for i := range auths {
		resp, err := m.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec, Auth: auths[i].AuthConfig, SandboxConfig: sandbox})
		if err == nil {
			return resp.ImageRef, &auths[i], nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 1 {
		return "", nil, errs[0]
	}
	return "", nil, errors.Join(errs...)
}
