package webhookcall

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestAsk(t *testing.T) {
	was := retries
	retries.Duration = time.Millisecond
	t.Cleanup(func() { retries = was })
	for _, c := range []struct {
		answers string // one for each time: k good, 4 bad, 5 failed, m many, x broken off, j no JSON
		asked   int
		fails   string
	}{
		{"k", 1, ""}, {"5k", 2, ""}, {"mx55k", 5, ""}, {"55555k", 5, "500"}, {"4k", 1, "400"}, {"jk", 1, "read the answer"},
	} {
		asked := 0
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err != nil || string(b) != `{"q":1}` {
				t.Errorf("%s: asked %s, %v", c.answers, b, err)
			}
			asked++
			switch c.answers[asked-1] {
			case 'k':
				_, _ = io.WriteString(w, `{"a":2}`)
			case '4':
				w.WriteHeader(http.StatusBadRequest)
			case '5':
				w.WriteHeader(http.StatusInternalServerError)
			case 'm':
				w.WriteHeader(http.StatusTooManyRequests)
			case 'x':
				panic(http.ErrAbortHandler)
			case 'j':
				_, _ = io.WriteString(w, "what?")
			}
		}))
		var got map[string]int
		err := Ask(t.Context(), srv.Client(), srv.URL, map[string]int{"q": 1}, &got)
		srv.Close()
		if asked != c.asked || c.fails == "" && (err != nil || got["a"] != 2) || c.fails != "" && (err == nil || !strings.Contains(err.Error(), c.fails)) {
			t.Errorf("%s: asked %d times, want %d; %v, %v, want %q", c.answers, asked, c.asked, got, err, c.fails)
		}
	}
}

// Who does not wait any longer is told why there is no answer.
func TestAskGivesUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		cancel()
	}))
	defer srv.Close()
	if err := Ask(ctx, srv.Client(), srv.URL, 1, new(int)); err == nil {
		t.Error("an answer")
	}
}
