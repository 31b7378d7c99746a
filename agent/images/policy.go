package images

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// Policies of Verification: for which images that are on the node a pod must show that
// it may have them.
const (
	NeverVerify                  = "NeverVerify"
	NeverVerifyPreloadedImages   = "NeverVerifyPreloadedImages"
	NeverVerifyAllowlistedImages = "NeverVerifyAllowlistedImages"
	AlwaysVerify                 = "AlwaysVerify"
)

// Verification is a kubelet's imagePullCredentialsVerificationPolicy, with its list:
// https://kubernetes.io/docs/concepts/containers/images/#ensureimagepullcredentialverification.
type Verification struct {
	// Policy is one of the above; empty: NeverVerifyPreloadedImages.
	Policy string
	// Allowlist are names of images, without tag or digest, which need no verification by
	// NeverVerifyAllowlistedImages if they came to the node otherwise than by a pull for a
	// pod. One that ends in /* covers all names below.
	Allowlist []string
}

// Validate finds what cannot be meant.
func (v Verification) Validate() error {
	switch v.Policy {
	case "", NeverVerify, NeverVerifyPreloadedImages, AlwaysVerify:
		if len(v.Allowlist) > 0 {
			return fmt.Errorf("preloadedImagesVerificationAllowlist is used by the imagePullCredentialsVerificationPolicy %s alone: set that, or leave the list out", NeverVerifyAllowlistedImages)
		}
	case NeverVerifyAllowlistedImages:
		if len(v.Allowlist) == 0 {
			return fmt.Errorf("imagePullCredentialsVerificationPolicy %s needs a preloadedImagesVerificationAllowlist", NeverVerifyAllowlistedImages)
		}
	default:
		return fmt.Errorf("imagePullCredentialsVerificationPolicy %q: want %s, %s, %s or %s", v.Policy, NeverVerify, NeverVerifyPreloadedImages, NeverVerifyAllowlistedImages, AlwaysVerify)
	}
	for i, p := range v.Allowlist {
		if err := checkPattern(p); err != nil {
			return fmt.Errorf("preloadedImagesVerificationAllowlist[%d]: %q: %w", i, p, err)
		}
		if slices.Contains(v.Allowlist[:i], p) {
			return fmt.Errorf("preloadedImagesVerificationAllowlist[%d]: %q is there twice", i, p)
		}
	}
	return nil
}

// checkPattern refuses what is neither an image's name nor one with /* behind it.
func checkPattern(p string) error {
	base, _ := strings.CutSuffix(p, "/*")
	switch {
	case strings.Contains(base, "*"):
		return errors.New("a * may only stand alone behind the last /")
	case base == "" || strings.TrimSpace(base) != base:
		return errors.New("want the name of an image, such as registry.example.com/team/app or registry.example.com/team/*")
	}
	if base != p {
		base += "/x" // a registry alone, with its port, is no name yet
	}
	if _, err := name.NewRepository(base, name.WeakValidation); err != nil {
		return errors.New("want the name of an image without tag and digest, such as registry.example.com/team/app or registry.example.com/team/*")
	}
	return nil
}

// Settings are what is in force, in a kubelet's terms.
func (v Verification) Settings() map[string]any {
	out := map[string]any{"imagePullCredentialsVerificationPolicy": cmp.Or(v.Policy, NeverVerifyPreloadedImages)}
	if len(v.Allowlist) > 0 {
		out["preloadedImagesVerificationAllowlist"] = v.Allowlist
	}
	return out
}

// needed tells whether a pod must show that it may have an image that is on the node;
// ours: it was pulled for a pod.
func (v Verification) needed(repository string, ours bool) bool {
	switch v.Policy {
	case NeverVerify:
		return false
	case NeverVerifyAllowlistedImages:
		return ours || !v.listed(repository)
	case AlwaysVerify:
		return true
	}
	return ours
}

// listed tells whether the list covers an image, as the pod names it or in full.
func (v Verification) listed(repository string) bool {
	full := repository
	if r, err := name.NewRepository(repository, name.WeakValidation); err == nil {
		full = r.Name()
		if rest, ok := strings.CutPrefix(full, name.DefaultRegistry+"/"); ok {
			full = "docker.io/" + rest
		}
	}
	return slices.ContainsFunc(v.Allowlist, func(p string) bool {
		if prefix, ok := strings.CutSuffix(p, "*"); ok {
			return strings.HasPrefix(repository, prefix) || strings.HasPrefix(full, prefix)
		}
		return repository == p || full == p
	})
}
