package stream

import (
	"crypto/rand"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// tokenLife is how long a URL is good for.
	tokenLife = time.Minute
	// maxTokens is how many may be waiting to be used.
	maxTokens = 1000
)

// tokens keep requests until their URLs are used, each once.
type tokens struct {
	mu   sync.Mutex
	held map[string]waiting
}

type waiting struct {
	request any
	until   time.Time
}

// put returns the token of a request.
func (t *tokens) put(request any, now time.Time) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held == nil {
		t.held = map[string]waiting{}
	}
	if len(t.held) >= maxTokens {
		for k, w := range t.held {
			if now.After(w.until) {
				delete(t.held, k)
			}
		}
	}
	if len(t.held) >= maxTokens {
		return "", status.Errorf(codes.ResourceExhausted, "%d streams have been asked for and not been opened: try again in a minute", maxTokens)
	}
	token := rand.Text()
	t.held[token] = waiting{request, now.Add(tokenLife)}
	return token, nil
}

// take returns the request of a token that is good, else nil.
func (t *tokens) take(token string, now time.Time) any {
	t.mu.Lock()
	defer t.mu.Unlock()
	w, ok := t.held[token]
	delete(t.held, token)
	if !ok || now.After(w.until) {
		return nil
	}
	return w.request
}
