package diff

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// Step is one request that changes an object.
type Step struct {
	// Part is the subresource; "" is the object itself.
	Part string
	// Patch sends Text as a strategic merge patch. Otherwise, Text is the fields to
	// set in what is there, or the body for a part that things are posted to.
	Patch bool
	Text  string
}

// posted are the parts that are not objects.
var posted = map[string]bool{"binding": true, "eviction": true, "token": true}

var (
	stepTitle = regexp.MustCompile(`^(update|patch|(status|resize|ephemeralcontainers|scale|finalize|approval|binding|eviction|token)( by patch)?):`)
	stepLine  = regexp.MustCompile(`(?m)^then (.*:)\n`)
)

// steps reads what a variant does after the creation; nil: nothing.
func steps(title, text string) ([]Step, error) {
	if !stepTitle.MatchString(title) {
		return nil, nil
	}
	titles := []string{title}
	for _, m := range stepLine.FindAllStringSubmatch(text, -1) {
		titles = append(titles, m[1])
	}
	var out []Step
	for i, text := range stepLine.Split(text, -1) {
		m := stepTitle.FindStringSubmatch(titles[i])
		if m == nil {
			return nil, fmt.Errorf("no step is called %q", titles[i])
		}
		out = append(out, Step{Part: m[2], Patch: m[1] == "patch" || m[3] != "", Text: text})
	}
	return out, nil
}

// take does a step to the object that was made from manifest.
func (s *Server) take(ctx context.Context, step Step, manifest map[string]any) (*Verdict, error) {
	path := s.path(manifest)
	target := path
	if step.Part != "" {
		target += "/" + step.Part
	}
	var v *Verdict
	var err error
	switch {
	case posted[step.Part]:
		v, err = s.sendText(ctx, http.MethodPost, target, "application/json", step.Text, manifest)
	case step.Patch:
		v, err = s.sendText(ctx, http.MethodPatch, target, "application/strategic-merge-patch+json", step.Text, manifest)
	default:
		read := path
		if step.Part == "scale" {
			read = target
		}
		v, err = s.replace(ctx, step, read, target, manifest)
	}
	if err != nil || v.Code >= 300 || !posted[step.Part] && step.Part != "scale" {
		return v, err
	}
	r, err := s.do(ctx, http.MethodGet, path, "application/json", nil)
	if err != nil || r.code == http.StatusNotFound {
		return v, err
	}
	now, err := verdict(r.code, r.body, manifest)
	if err != nil {
		return nil, err
	}
	v.Stored = now.Object
	return v, nil
}

// replace puts what is read, with the step's changes, to target. Controllers inside
// the server may write in between: then it is read again.
func (s *Server) replace(ctx context.Context, step Step, read, target string, manifest map[string]any) (*Verdict, error) {
	const attempts = 5
	for i := 1; ; i++ {
		now := map[string]any{}
		if err := s.get(ctx, read, &now); err != nil {
			return nil, err
		}
		next, err := changed(now, step.Text)
		if err != nil {
			return nil, err
		}
		v, _, err := s.sendFor(ctx, http.MethodPut, target, next, manifest)
		if err != nil || v.Reason != string(metav1.StatusReasonConflict) || i == attempts {
			return v, err
		}
	}
}

// sendText sends a body that the corpus has whole.
func (s *Server) sendText(ctx context.Context, method, path, media, text string, manifest map[string]any) (*Verdict, error) {
	body, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		return nil, err
	}
	r, err := s.do(ctx, method, path+"?fieldValidation=Strict&fieldManager=corpus", media, body)
	if err != nil {
		return nil, err
	}
	return verdict(r.code, r.body, manifest)
}

// stand creates an object that a case needs, with its status.
func (s *Server) stand(ctx context.Context, o map[string]any) (map[string]any, error) {
	v, stored, err := s.send(ctx, http.MethodPost, s.collection(o), o)
	if err != nil || v.Code >= 300 || o["status"] == nil {
		if err == nil && v.Code >= 300 {
			err = fmt.Errorf("%v: %s", o["kind"], v.Message)
		}
		return stored, err
	}
	text, err := json.Marshal(map[string]any{"status": o["status"]})
	if err != nil {
		return nil, err
	}
	if v, err = s.take(ctx, Step{Part: "status", Text: string(text)}, o); err == nil && v.Code >= 300 {
		err = fmt.Errorf("status of %v: %s", o["kind"], v.Message)
	}
	return stored, err
}
