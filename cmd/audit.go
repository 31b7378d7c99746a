package cmd

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/apiserver/audit"
)

// AuditConfig says what is written down of who does what to the API; see
// docs/security.md.
type AuditConfig struct {
	// PolicyFile is an audit.k8s.io/v1 Policy; empty: nothing is written down.
	PolicyFile string              `json:"policyFile,omitempty"`
	Log        audit.LogConfig     `json:"log,omitzero"`
	Webhook    audit.WebhookConfig `json:"webhook,omitzero"`
}

func (c *AuditConfig) validate() (errs field.ErrorList) {
	path := field.NewPath("audit")
	somewhere := c.Log.Path != "" || c.Webhook.ConfigFile != ""
	switch {
	case c.PolicyFile == "" && somewhere:
		errs = append(errs, field.Required(path.Child("policyFile"), "without a policy nothing is written down"))
	case c.PolicyFile != "" && !somewhere:
		errs = append(errs, field.Required(path.Child("log", "path"), "or webhook.configFile: events must go somewhere"))
	}
	return errs
}

// auditing is the auditor with what it writes to.
type auditing struct {
	*audit.Auditor
	log     *audit.Log
	webhook *audit.Webhook
}

// openAudit opens what the configuration asks for; nil if it asks for nothing.
func openAudit(c AuditConfig, log *slog.Logger) (a *auditing, err error) {
	if c.PolicyFile == "" {
		return nil, nil
	}
	a = &auditing{Auditor: &audit.Auditor{Now: time.Now}}
	if a.Policy, err = audit.LoadPolicy(c.PolicyFile); err != nil {
		return nil, err
	}
	if c.Webhook.ConfigFile != "" {
		if a.webhook, err = audit.OpenWebhook(c.Webhook, log); err != nil {
			return nil, err
		}
		a.Backends = append(a.Backends, a.webhook)
	}
	if c.Log.Path != "" {
		if a.log, err = audit.OpenLog(c.Log, time.Now, log); err != nil {
			return nil, err
		}
		a.Backends = append(a.Backends, a.log)
	}
	return a, nil
}

// auditor is nil if nothing is written down.
func (a *auditing) auditor() *audit.Auditor {
	if a == nil {
		return nil
	}
	return a.Auditor
}

func (a *auditing) run(ctx context.Context, g *errgroup.Group) {
	if a != nil && a.webhook != nil {
		g.Go(func() error { return a.webhook.Run(ctx) })
	}
}

func (a *auditing) close() {
	if a != nil && a.log != nil {
		_ = a.log.Close() // each event is in the file already
	}
}
