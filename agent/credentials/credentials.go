package credentials

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"
)

// Accounts reads service accounts and issues their tokens.
type Accounts interface {
	Account(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error)
	// Token is one of the pod's account, bound to the pod.
	Token(ctx context.Context, pod *corev1.Pod, audience string) (string, error)
}

// Keyring finds credentials. Make one with New.
type Keyring struct {
	providers []Provider
	bin       string
	dirs      []string // of docker's configuration
	accounts  Accounts
	clock     clock.PassiveClock

	asked singleflight.Group
	mu    sync.Mutex
	cache map[string]cached // by provider, service account and what CacheKeyType says
}

type cached struct {
	auth  map[string]Auth
	until time.Time
}

// New returns a keyring. cfg nil means that there are no plugins; their programs lie
// in bin. dirs are folders with a docker configuration, of which the first counts
// that has one.
func New(cfg *Config, bin string, dirs []string, accounts Accounts, clk clock.PassiveClock) *Keyring {
	k := &Keyring{bin: bin, dirs: dirs, accounts: accounts, clock: clk, cache: map[string]cached{}}
	if cfg != nil {
		k.providers = cfg.Providers
	}
	return k
}

// Find returns what may open the image's registry, in the order in which to try it.
// The error says which plugins and files failed; what the others know is returned with it.
func (k *Keyring) Find(ctx context.Context, image string, pod *corev1.Pod) ([]Credential, error) {
	var errs []error
	out, err := fromFiles(image, k.dirs)
	if err != nil {
		errs = append(errs, err)
	}
	registry, repository, ok := target(image)
	if !ok {
		return out, errors.Join(errs...)
	}
	var found []match
	for i := range k.providers {
		p := &k.providers[i]
		if !p.covers(repository) {
			continue
		}
		auth, account, err := k.provide(ctx, p, image, registry, repository, pod)
		if err != nil {
			errs = append(errs, fmt.Errorf("credential provider %s: %w", p.Name, err))
			continue
		}
		for key, a := range auth {
			if matches(key, repository) {
				auth := &runtimeapi.AuthConfig{Username: a.Username, Password: a.Password, ServerAddress: registry}
				found = append(found, match{key, Credential{AuthConfig: auth, Account: account}})
			}
		}
	}
	return append(out, ordered(found)...), errors.Join(errs...)
}

// account is what a plugin is told of a pod's service account.
type account struct {
	token       string
	annotations map[string]string
	key         string  // tells apart whose credentials are kept
	origin      *Origin // nil: it is told of none
}

// provide returns what a plugin knows, asking it if that is not known any more, and
// the service account for which it knows that.
func (k *Keyring) provide(ctx context.Context, p *Provider, image, registry, repository string, pod *corev1.Pod) (map[string]Auth, *Origin, error) {
	acc, skip, err := k.account(ctx, p, pod)
	if err != nil || skip {
		return nil, nil, err
	}
	prefix := p.Name + "\x00" + acc.key + "\x00"
	keys := map[string]string{"Image": prefix + "i" + repository, "Registry": prefix + "r" + registry, "Global": prefix + "g"}
	k.mu.Lock()
	maps.DeleteFunc(k.cache, func(_ string, c cached) bool { return !k.clock.Now().Before(c.until) })
	for _, key := range keys {
		if c, ok := k.cache[key]; ok {
			k.mu.Unlock()
			return c.auth, acc.origin, nil
		}
	}
	k.mu.Unlock()
	v, err, _ := k.asked.Do(prefix+image+"\x00"+acc.token, func() (any, error) {
		r, err := k.run(ctx, p, request{TypeMeta: metav1.TypeMeta{APIVersion: apiVersion, Kind: "CredentialProviderRequest"}, Image: image, Token: acc.token, Annotations: acc.annotations})
		if err != nil {
			return nil, err
		}
		key, ok := keys[r.CacheKeyType]
		if !ok {
			return nil, fmt.Errorf("it answered with the cacheKeyType %q: want Image, Registry or Global", r.CacheKeyType)
		}
		keep := p.DefaultCacheDuration.Duration
		if r.CacheDuration != nil {
			keep = r.CacheDuration.Duration
		}
		if keep > 0 {
			k.mu.Lock()
			k.cache[key] = cached{auth: r.Auth, until: k.clock.Now().Add(keep)}
			k.mu.Unlock()
		}
		return r.Auth, nil
	})
	auth, _ := v.(map[string]Auth)
	return auth, acc.origin, err
}

// account finds what the plugin wants to know of the pod; skip: it is not to be asked.
func (k *Keyring) account(ctx context.Context, p *Provider, pod *corev1.Pod) (acc account, skip bool, err error) {
	t := p.TokenAttributes
	if t == nil {
		return acc, false, nil
	}
	name := ""
	if pod != nil {
		name = pod.Spec.ServiceAccountName
	}
	if name == "" || k.accounts == nil {
		return acc, *t.Require, nil
	}
	sa, err := k.accounts.Account(ctx, pod.Namespace, name)
	if err != nil {
		return acc, false, fmt.Errorf("service account %s/%s: %w", pod.Namespace, name, err)
	}
	acc.origin = &Origin{UID: sa.UID, Namespace: sa.Namespace, Name: sa.Name}
	acc.annotations = map[string]string{}
	for _, key := range t.RequiredAnnotations {
		v, ok := sa.Annotations[key]
		if !ok {
			return acc, false, fmt.Errorf("service account %s/%s lacks the annotation %s", pod.Namespace, name, key)
		}
		acc.annotations[key] = v
	}
	for _, key := range t.OptionalAnnotations {
		if v, ok := sa.Annotations[key]; ok {
			acc.annotations[key] = v
		}
	}
	if acc.token, err = k.accounts.Token(ctx, pod, t.Audience); err != nil {
		return acc, false, err
	}
	id, err := json.Marshal([]any{sa.Namespace, sa.Name, sa.UID, acc.annotations})
	if err != nil {
		return acc, false, err
	}
	if t.CacheType == cachePerToken {
		id = append(id, acc.token...)
	}
	acc.key = fmt.Sprintf("%x", sha256.Sum256(id))
	return acc, false, nil
}

// run asks a plugin.
func (k *Keyring) run(ctx context.Context, p *Provider, req request) (*response, error) {
	in, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	// Several may wait for the answer: it does not end with the first of them.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerIn)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(k.bin, p.Name), p.Args...)
	cmd.Stdin = bytes.NewReader(in)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &limited{&out, maxAnswer}, &limited{&problems, 4096}
	cmd.WaitDelay = time.Second // what it leaves running does not hold its output open
	cmd.Env = os.Environ()
	for _, e := range p.Env {
		cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
	}
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(problems.String()))
	}
	r := &response{}
	if err := json.Unmarshal(out.Bytes(), r); err != nil {
		return nil, fmt.Errorf("its answer: %w", err)
	}
	if r.Kind != "CredentialProviderResponse" || r.APIVersion != apiVersion {
		return nil, fmt.Errorf("it answered with a %s of %s instead of a CredentialProviderResponse of %s", r.Kind, r.APIVersion, apiVersion)
	}
	return r, nil
}

// limited takes so many bytes and drops the others.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	if _, err := l.w.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}
