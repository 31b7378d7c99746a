// Package webhookcall asks the webhooks of authentication and authorization.
package webhookcall

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

const maxAnswer = 1 << 20 // bytes

// retries are those of Kubernetes' API server.
var retries = wait.Backoff{Duration: 500 * time.Millisecond, Factor: 1.5, Jitter: 0.2, Steps: 5}

// Ask posts a question as JSON and reads the answer. A webhook that cannot be
// reached, is busy or has failed is asked again, five times in all and within the
// client's timeout.
func Ask(ctx context.Context, client *http.Client, url string, question, answer any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	if client.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, client.Timeout)
		defer cancel()
	}
	var last error
	err = wait.ExponentialBackoffWithContext(ctx, retries, func(ctx context.Context) (bool, error) {
		var again bool
		again, last = once(ctx, client, url, body, answer)
		return !again, nil
	})
	if last != nil {
		return last
	}
	return err
}

func once(ctx context.Context, client *http.Client, url string, body []byte, answer any) (again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return ctx.Err() == nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= http.StatusInternalServerError, fmt.Errorf("%s answered %s", url, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(answer); err != nil {
		return false, fmt.Errorf("read the answer of %s: %w", url, err)
	}
	return false, nil
}
