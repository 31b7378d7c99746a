package cmd

import (
	"fmt"
	"time"

	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/auth/oidc"
)

// authentication adds what the file authenticationConfig says.
func (c *APIConfig) authentication(a *auth.Authenticator) error {
	if c.AuthenticationConfig == "" {
		return nil
	}
	file, err := oidc.Load(c.AuthenticationConfig)
	if err != nil {
		return err
	}
	if len(file.JWT) > 0 {
		o, err := oidc.New(file.JWT, time.Now)
		if err != nil {
			return fmt.Errorf("authentication configuration %s: %w", c.AuthenticationConfig, err)
		}
		a.Bearers = append(a.Bearers, o)
	}
	a.Anonymous = oidc.Anonymous(file.Anonymous)
	return nil
}
