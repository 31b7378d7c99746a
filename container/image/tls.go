package image

import "crypto/tls"

// insecureTLS is for registries whose operator asked for it by name.
func insecureTLS() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true} //nolint:gosec // the point of Registry.SkipVerify
}
