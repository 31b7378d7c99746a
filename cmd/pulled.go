package cmd

import "knarr.dev/knarr/agent/images"

// PulledConfig is when a pod must show that it may have an image that is on the node, in
// the terms of a kubelet's configuration.
type PulledConfig struct {
	// VerifyPulled is NeverVerify, NeverVerifyPreloadedImages (or empty),
	// NeverVerifyAllowlistedImages or AlwaysVerify.
	VerifyPulled string `json:"imagePullCredentialsVerificationPolicy,omitempty"`
	// Preloaded are names of images, without tag and digest and perhaps with /* at the
	// end, that NeverVerifyAllowlistedImages lets every pod use.
	Preloaded []string `json:"preloadedImagesVerificationAllowlist,omitempty"`
}

func (c PulledConfig) verification() images.Verification {
	return images.Verification{Policy: c.VerifyPulled, Allowlist: c.Preloaded}
}
