package images

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	config "k8s.io/kubelet/config/v1alpha1"
	"k8s.io/utils/clock"

	"knarr.dev/knarr/agent/credentials"
)

// records tell which images were pulled for pods, and with whose credentials:
//
//	begin ──> pulling/sha256-<image>      an image may come to be there by our doing
//	end ────> pulled/sha256-<reference>   whose credentials fetched it; the intent goes
//
// So a death in between leaves an intent, and what it names is never taken for an image
// that somebody else brought. All is read once and kept in memory: only what changes is
// written. The files are those of kubelets.
type records struct {
	dir   string
	clock clock.PassiveClock
	log   *slog.Logger

	// disk is held while files change, and taken before mu.
	disk sync.Mutex

	mu     sync.Mutex
	pulled map[string]*config.ImagePulledRecord // by reference; replaced, never changed
	// pulling counts the pulls in flight, by image with its tag.
	pulling map[string]int
	// left are intents whose pull may have succeeded without its record: files to images,
	// none if that cannot be read. broken are files of records that cannot be read.
	left   map[string]string
	broken map[string]bool
}

func openRecords(dir string, clk clock.PassiveClock, log *slog.Logger) (*records, error) {
	r := &records{dir: dir, clock: clk, log: log, pulled: map[string]*config.ImagePulledRecord{}, pulling: map[string]int{}, left: map[string]string{}, broken: map[string]bool{}}
	return r, r.load()
}

// known is what is known of an image that is on the node: its record, or else whether
// it may have been pulled for a pod.
func (r *records) known(ref, image string) (rec *config.ImagePulledRecord, ours bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec := r.pulled[ref]; rec != nil {
		return rec, true
	}
	if r.pulling[image] > 0 || len(r.broken) > 0 && r.broken[fileName(ref)] {
		return nil, true
	}
	if len(r.left) > 0 {
		if _, ok := r.left[fileName(image)]; ok {
			return nil, true
		}
	}
	// By its digest an image is there before the pull of its tag has ended.
	if strings.Contains(image, "@") {
		for other := range r.pulling {
			if repositoryOf(other) == repositoryOf(image) {
				return nil, true
			}
		}
	}
	return nil, false
}

// begin notes that an image is about to be pulled. One end must follow unless it fails.
func (r *records) begin(image string) error {
	r.disk.Lock()
	defer r.disk.Unlock()
	r.mu.Lock()
	there := r.pulling[image] > 0 || r.left[fileName(image)] != ""
	r.mu.Unlock()
	if !there {
		if err := r.save(pullingDir, image, &config.ImagePullIntent{TypeMeta: typeOf(intentKind), Image: image}); err != nil {
			return fmt.Errorf("note that image %s is being pulled: %w", image, err)
		}
	}
	r.mu.Lock()
	r.pulling[image]++
	r.mu.Unlock()
	return nil
}

// end notes how a pull ended: with c the image ref was fetched; c nil: it failed.
func (r *records) end(image, ref string, c *credentials.Credential) {
	r.disk.Lock()
	defer r.disk.Unlock()
	var err error
	if c != nil {
		err = r.grant(ref, repositoryOf(image), *c)
	}
	file := fileName(image)
	r.mu.Lock()
	if r.pulling[image]--; r.pulling[image] == 0 {
		delete(r.pulling, image)
	}
	switch {
	case err != nil:
		r.left[file] = image
	case c != nil:
		delete(r.left, file)
	}
	_, stays := r.left[file]
	stays = stays || r.pulling[image] > 0
	r.mu.Unlock()
	if err != nil {
		r.log.Error("who may use an image is not known after the next start of knarr", "image", image, "error", err)
	}
	if !stays {
		r.remove(pullingDir, file)
	}
}

// extend adds a credential to those that an image may be used with.
func (r *records) extend(ref, repository string, c credentials.Credential) {
	r.disk.Lock()
	defer r.disk.Unlock()
	r.mu.Lock()
	gone := r.pulled[ref] == nil
	r.mu.Unlock()
	if gone {
		return
	}
	if err := r.grant(ref, repository, c); err != nil {
		r.log.Warn("a credential for an image that is on the node is not remembered", "image", repository, "error", err)
	}
}

// grant puts a credential into the record of an image, and writes that if it is news.
// The caller holds disk.
func (r *records) grant(ref, repository string, c credentials.Credential) error {
	r.mu.Lock()
	next, news := granted(r.pulled[ref], repository, c)
	news = news || r.broken[fileName(ref)]
	next.TypeMeta, next.ImageRef, next.LastUpdatedTime = typeOf(recordKind), ref, metav1.NewTime(r.clock.Now())
	r.pulled[ref] = next
	r.mu.Unlock()
	if !news {
		return nil
	}
	return r.write(next)
}

// write puts a record on the disk. The caller holds disk.
func (r *records) write(rec *config.ImagePulledRecord) error {
	if err := r.save(pulledDir, rec.ImageRef, rec); err != nil {
		return fmt.Errorf("note who pulled image %s: %w", rec.ImageRef, err)
	}
	r.mu.Lock()
	delete(r.broken, fileName(rec.ImageRef))
	r.mu.Unlock()
	return nil
}

// granted is a record, nil for none, with a credential more; false: it had it.
func granted(rec *config.ImagePulledRecord, repository string, c credentials.Credential) (*config.ImagePulledRecord, bool) {
	next := &config.ImagePulledRecord{}
	if rec != nil {
		*next = *rec
	}
	had := next.CredentialMapping[repository]
	now := had
	switch {
	case had.NodePodsAccessible:
		return next, false
	case c.Secret != nil:
		s := config.ImagePullSecret{UID: string(c.Secret.UID), Namespace: c.Secret.Namespace, Name: c.Secret.Name, CredentialHash: c.Hash()}
		now.KubernetesSecrets = slices.DeleteFunc(slices.Clone(had.KubernetesSecrets), func(o config.ImagePullSecret) bool { return sameSecret(o, s) })
		now.KubernetesSecrets = append(now.KubernetesSecrets, s)
		if slices.Contains(had.KubernetesSecrets, s) {
			return next, false
		}
	case c.Account != nil:
		a := account(c.Account)
		if slices.Contains(had.KubernetesServiceAccounts, a) {
			return next, false
		}
		now.KubernetesServiceAccounts = append(slices.Clone(had.KubernetesServiceAccounts), a)
	default:
		now = config.ImagePullCredentials{NodePodsAccessible: true}
	}
	next.CredentialMapping = maps.Clone(next.CredentialMapping)
	if next.CredentialMapping == nil {
		next.CredentialMapping = map[string]config.ImagePullCredentials{}
	}
	next.CredentialMapping[repository] = now
	return next, true
}

func sameSecret(a, b config.ImagePullSecret) bool {
	return a.UID == b.UID && a.Namespace == b.Namespace && a.Name == b.Name
}

func account(o *credentials.Origin) config.ImagePullServiceAccount {
	return config.ImagePullServiceAccount{UID: string(o.UID), Namespace: o.Namespace, Name: o.Name}
}

// unfinished are the intents that are left: files to images.
func (r *records) unfinished() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.left)
}

// adopt ends an intent that was left: ref, which its image is, is on the node, and nobody
// knows with which credentials it came; ref empty: it is not there.
func (r *records) adopt(file, image, ref string) error {
	r.disk.Lock()
	defer r.disk.Unlock()
	if ref != "" {
		r.mu.Lock()
		rec := r.pulled[ref]
		if rec == nil {
			rec = &config.ImagePulledRecord{TypeMeta: typeOf(recordKind), ImageRef: ref, LastUpdatedTime: metav1.NewTime(r.clock.Now())}
			r.pulled[ref] = rec
		}
		r.mu.Unlock()
		if err := r.write(rec); err != nil {
			return err
		}
	}
	r.mu.Lock()
	delete(r.left, file)
	busy := r.pulling[image] > 0
	r.mu.Unlock()
	if !busy {
		r.remove(pullingDir, file)
	}
	return nil
}

// prune forgets images that were not on the node when list was made, which was after
// before, and intents that cannot be read.
func (r *records) prune(list []*runtimeapi.Image, before time.Time) {
	refs, files := map[string]bool{}, map[string]bool{}
	for _, i := range list {
		for _, ref := range slices.Concat([]string{i.Id}, i.RepoDigests, i.RepoTags) {
			refs[ref] = true
		}
	}
	r.mu.Lock()
	var gone []string
	for ref := range r.pulled {
		if !refs[ref] {
			gone = append(gone, ref)
		}
	}
	if len(r.broken) > 0 {
		for ref := range refs {
			files[fileName(ref)] = true
		}
	}
	var void []string
	for file := range r.broken {
		if !files[file] {
			void = append(void, file)
		}
	}
	r.mu.Unlock()
	for _, ref := range gone {
		r.drop(ref, before)
	}
	for _, file := range void {
		r.disk.Lock()
		r.mu.Lock()
		still := r.broken[file]
		delete(r.broken, file)
		r.mu.Unlock()
		if still { // else a pull has written it anew
			r.remove(pulledDir, file)
		}
		r.disk.Unlock()
	}
}

// drop forgets an image that was removed at before or later, unless it was pulled since.
func (r *records) drop(ref string, before time.Time) {
	r.disk.Lock()
	defer r.disk.Unlock()
	r.mu.Lock()
	rec := r.pulled[ref]
	if rec == nil || !rec.LastUpdatedTime.Time.Before(before) {
		r.mu.Unlock()
		return
	}
	delete(r.pulled, ref)
	r.mu.Unlock()
	r.remove(pulledDir, fileName(ref))
}
