package cmd

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"knarr.dev/knarr/apiserver/auth"
	"knarr.dev/knarr/apiserver/auth/oidc"
	"knarr.dev/knarr/apiserver/auth/webhookauthn"
	"knarr.dev/knarr/apiserver/auth/webhookauthz"
)

// authentication adds what the file authenticationConfig says.
func (c *APIConfig) authentication(a *auth.Authenticator) error {
	if c.TokenWebhookConfig != "" {
		ttl := webhookauthn.DefaultTTL
		if c.TokenWebhookCacheTTL != "" {
			var err error
			if ttl, err = time.ParseDuration(c.TokenWebhookCacheTTL); err != nil || ttl < 0 {
				return fmt.Errorf("api.authenticationTokenWebhookCacheTTL %q: want a duration such as 2m", c.TokenWebhookCacheTTL)
			}
		}
		w, err := webhookauthn.Load(c.TokenWebhookConfig, a.Tokens.Audiences, ttl)
		if err != nil {
			return fmt.Errorf("api.authenticationTokenWebhookConfigFile: %w", err)
		}
		a.Webhook = w
	}
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

// authorization returns the authorizers in the order of the file
// authorizationConfig, or else of Kubernetes' default.
func (c *APIConfig) authorization(ctx context.Context, node auth.Authorizer, rbac *auth.RBAC, log *slog.Logger) (*auth.Chain, error) {
	if c.AuthorizationConfig == "" {
		return auth.NewChain(ctx, rbac, node), nil
	}
	return webhookauthz.Load(ctx, c.AuthorizationConfig, node, rbac, log)
}
