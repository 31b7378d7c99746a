package images

import (
	"context"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	config "k8s.io/kubelet/config/v1alpha1"

	"knarr.dev/knarr/agent/credentials"
)

const (
	// maxExtended is how many secrets an image's record has before no further ones are
	// added that hold a credential which is known already.
	maxExtended = 100
	// abandoned is how long a pull that an earlier run began may go on in the runtime.
	abandoned = 10 * time.Minute
)

// permitted tells whether a pod may use an image that is on the node without asking its
// registry. For an image that every pod may use it costs a look into a map.
func (m *Manager) permitted(ctx context.Context, r Request, ref string) bool {
	if m.verify.Policy == NeverVerify {
		return true
	}
	m.settle(ctx)
	repository := repositoryOf(r.Image)
	rec, ours := m.records.known(ref, withTag(r.Image))
	var known config.ImagePullCredentials
	if rec != nil {
		known = rec.CredentialMapping[repository]
	}
	if known.NodePodsAccessible || !m.verify.needed(repository, ours) {
		return true
	}
	if len(known.KubernetesSecrets) > 0 {
		// What cannot be read cannot have pulled the image; the pull tells of it.
		list, _ := credentials.FromSecrets(r.Image, r.Secrets)
		if c, news, ok := matching(known.KubernetesSecrets, list); ok {
			if news {
				m.records.extend(ref, repository, c)
			}
			return true
		}
	}
	if len(known.KubernetesServiceAccounts) == 0 || m.account == nil {
		return false
	}
	a, err := m.account(ctx, r.Image, r.Pod)
	if err != nil {
		m.log.Debug("a pod's service account is not known, so it has to pull its image", "image", r.Image, "error", err)
	}
	return a != nil && slices.Contains(known.KubernetesServiceAccounts, account(a))
}

// matching finds a credential that is known, by its secret or by what it says; news: the
// record does not say just that and should.
func matching(known []config.ImagePullSecret, list []credentials.Credential) (found credentials.Credential, news, ok bool) {
	for _, c := range list {
		s := config.ImagePullSecret{UID: string(c.Secret.UID), Namespace: c.Secret.Namespace, Name: c.Secret.Name, CredentialHash: c.Hash()}
		for _, k := range known {
			switch {
			case k == s:
				return c, false, true
			case sameSecret(k, s): // it was changed since
				found, news, ok = c, true, true
			case k.CredentialHash == s.CredentialHash && !ok:
				found, news, ok = c, len(known) <= maxExtended, true
			}
		}
	}
	return found, news, ok
}

// settle looks, once, which images of pulls that an earlier run did not see the end of
// are on the node. Those of which that cannot be told stay known as being pulled.
func (m *Manager) settle(ctx context.Context) {
	if m.settled.Load() {
		return
	}
	m.settling.Lock()
	defer m.settling.Unlock()
	if m.settled.Load() {
		return
	}
	if m.finish(ctx, false) {
		m.settled.Store(true)
	}
}

// finish gives images of unfinished intents that are there their records; drop forgets
// the intents of others. False: it could not be told of all.
func (m *Manager) finish(ctx context.Context, drop bool) bool {
	all := true
	for file, image := range m.records.unfinished() {
		ref := ""
		if image != "" { // else the intent cannot be read
			present, err := m.inspect(ctx, &runtimeapi.ImageSpec{Image: image})
			if err != nil {
				m.log.Warn("whether an image is there whose pull was broken off is looked at later", "image", image, "error", err)
				all = false
				continue
			}
			if present != nil {
				ref = present.Ref
			}
		}
		if ref == "" && !drop {
			continue
		}
		if err := m.records.adopt(file, image, ref); err != nil {
			m.log.Warn("that an image was pulled is noted later", "image", image, "error", err)
			all = false
		}
	}
	return all
}

// Prune forgets who pulled images that are not on the node: list is all that are, and
// was made after before.
func (m *Manager) Prune(ctx context.Context, list []*runtimeapi.Image, before time.Time) {
	m.settle(ctx)
	m.records.prune(list, before)
	if m.clock.Since(m.began) >= abandoned {
		m.settling.Lock()
		defer m.settling.Unlock()
		m.finish(ctx, true)
	}
}

// Removed forgets who pulled an image that was removed after before.
func (m *Manager) Removed(ref string, before time.Time) {
	m.records.drop(ref, before)
}
