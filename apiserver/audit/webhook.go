package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// WebhookConfig is what a Webhook is made of; the names are those of
// kube-apiserver's flags audit-webhook-….
type WebhookConfig struct {
	// ConfigFile is a kubeconfig that names the webhook.
	ConfigFile string `json:"configFile,omitempty"`
	// BatchBufferSize events wait at most, the rest is lost; 0: 10000.
	BatchBufferSize int `json:"batchBufferSize,omitempty"`
	// BatchMaxSize events are sent at once; 0: 400.
	BatchMaxSize int `json:"batchMaxSize,omitempty"`
	// BatchMaxWait is how long events are collected; 0: 30 s.
	BatchMaxWait metav1.Duration `json:"batchMaxWait,omitzero"`
	// InitialBackoff is the pause before a failed batch is sent again; 0: 10 s.
	InitialBackoff metav1.Duration `json:"initialBackoff,omitzero"`
}

// sendTries is how often a batch is sent; then it is lost.
const sendTries = 4

// Webhook sends events in batches.
type Webhook struct {
	cfg    WebhookConfig
	url    string
	client *http.Client
	queue  chan *auditv1.Event
	log    *slog.Logger
}

// OpenWebhook reads the kubeconfig; Run sends.
func OpenWebhook(cfg WebhookConfig, log *slog.Logger) (*Webhook, error) {
	rc, err := clientcmd.BuildConfigFromFlags("", cfg.ConfigFile)
	if err != nil {
		return nil, fmt.Errorf("audit webhook %s: %w", cfg.ConfigFile, err)
	}
	rc.Timeout = 30 * time.Second
	client, err := rest.HTTPClientFor(rc)
	if err != nil {
		return nil, fmt.Errorf("audit webhook %s: %w", cfg.ConfigFile, err)
	}
	if cfg.BatchBufferSize == 0 {
		cfg.BatchBufferSize = 10000
	}
	if cfg.BatchMaxSize == 0 {
		cfg.BatchMaxSize = 400
	}
	if cfg.BatchMaxWait.Duration == 0 {
		cfg.BatchMaxWait.Duration = 30 * time.Second
	}
	if cfg.InitialBackoff.Duration == 0 {
		cfg.InitialBackoff.Duration = 10 * time.Second
	}
	return &Webhook{cfg: cfg, url: rc.Host, client: client, queue: make(chan *auditv1.Event, cfg.BatchBufferSize), log: log}, nil
}

// Write implements Backend: the event is queued.
func (w *Webhook) Write(e *auditv1.Event) {
	select {
	case w.queue <- e:
	default:
		w.log.Error("audit event is lost: the webhook does not keep up", "id", e.AuditID)
	}
}

// lastWords is how long the events that are left may take when the server ends.
const lastWords = 5 * time.Second

// Run sends batches until ctx ends, and then what is left.
func (w *Webhook) Run(ctx context.Context) error {
	for {
		batch, more := w.collect(ctx)
		if !more {
			final, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
			defer cancel()
			for len(batch) > 0 {
				n := min(len(batch), w.cfg.BatchMaxSize)
				w.send(final, batch[:n])
				batch = batch[n:]
			}
			return nil
		}
		w.send(ctx, batch)
	}
}

// collect waits for a full batch, or for the first event and then BatchMaxWait.
func (w *Webhook) collect(ctx context.Context) (batch []auditv1.Event, more bool) {
	var due <-chan time.Time
	for len(batch) < w.cfg.BatchMaxSize {
		select {
		case e := <-w.queue:
			batch = append(batch, *e)
			if due == nil {
				timer := time.NewTimer(w.cfg.BatchMaxWait.Duration)
				defer timer.Stop()
				due = timer.C
			}
		case <-due:
			return batch, true
		case <-ctx.Done():
			for {
				select {
				case e := <-w.queue:
					batch = append(batch, *e)
				default:
					return batch, false
				}
			}
		}
	}
	return batch, true
}

func (w *Webhook) send(ctx context.Context, batch []auditv1.Event) {
	body, err := json.Marshal(&auditv1.EventList{TypeMeta: metav1.TypeMeta{APIVersion: auditv1.SchemeGroupVersion.String(), Kind: "EventList"}, Items: batch})
	if err != nil {
		w.log.Error("audit events are lost", "count", len(batch), "error", err)
		return
	}
	pause := w.cfg.InitialBackoff.Duration
	for try := 1; ; try++ {
		if err = w.post(ctx, body); err == nil {
			return
		}
		if try == sendTries || ctx.Err() != nil {
			w.log.Error("audit events are lost", "count", len(batch), "error", err)
			return
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		pause += pause / 2
	}
}

func (w *Webhook) post(ctx context.Context, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := w.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)) // so that the connection is kept
	if resp.StatusCode >= 300 {
		return fmt.Errorf("the audit webhook answered %s", resp.Status)
	}
	return nil
}
