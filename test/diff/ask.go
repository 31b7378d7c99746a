package diff

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Server is an API server that cases are put to.
type Server struct {
	URL    string
	Client *http.Client // authenticates as an administrator
	paths  map[schema.GroupVersionKind]place
}

// place is where a kind's objects are.
type place struct {
	resource   string
	namespaced bool
}

// namespace is where the cases' namespaced objects go.
const namespace = "corpus"

// Prepare learns what the server serves and makes what the cases need.
func (s *Server) Prepare(ctx context.Context) error {
	s.paths = map[schema.GroupVersionKind]place{}
	type list struct {
		GroupVersion string
		Resources    []struct {
			Name, Kind string
			Namespaced bool
		}
	}
	var groups struct {
		Groups []struct {
			Versions []struct{ GroupVersion string }
		}
	}
	if err := s.get(ctx, "/apis", &groups); err != nil {
		return err
	}
	versions := []string{"/api/v1"}
	for _, g := range groups.Groups {
		for _, v := range g.Versions {
			versions = append(versions, "/apis/"+v.GroupVersion)
		}
	}
	for _, path := range versions {
		var l list
		if err := s.get(ctx, path, &l); err != nil {
			return err
		}
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			return err
		}
		for _, r := range l.Resources {
			if !strings.Contains(r.Name, "/") {
				s.paths[gv.WithKind(r.Kind)] = place{r.Name, r.Namespaced}
			}
		}
	}
	for _, o := range []map[string]any{
		{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": namespace}},
		{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": map[string]any{"name": "default", "namespace": namespace}},
	} {
		if v, _, err := s.send(ctx, http.MethodPost, s.collection(o), o); err != nil || v.Code != http.StatusCreated && v.Code != http.StatusConflict {
			return fmt.Errorf("prepare %v: %+v: %w", o["kind"], v, err)
		}
	}
	return nil
}

// Ask puts a case to the server and takes away what it made.
func (s *Server) Ask(ctx context.Context, c Case) (v *Verdict, err error) {
	for _, o := range c.With {
		stored, err := s.stand(ctx, o)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.Name, err)
		}
		defer func() { err = errors.Join(err, s.remove(ctx, stored)) }()
	}
	v, stored, err := s.send(ctx, http.MethodPost, s.collection(c.Object), c.Object)
	if err != nil || v.Code >= 300 && c.Steps == nil {
		return v, err
	}
	if v.Code >= 300 {
		return nil, fmt.Errorf("%s: the manifest itself is refused: %s", c.Name, v.Message)
	}
	for i, step := range c.Steps {
		if v, err = s.take(ctx, step, c.Object); err != nil {
			return nil, fmt.Errorf("%s: %w", c.Name, err)
		}
		if v.Code >= 300 && i < len(c.Steps)-1 {
			return nil, fmt.Errorf("%s: step %d is refused: %s", c.Name, i+1, v.Message)
		}
	}
	return v, s.remove(ctx, stored)
}

func (s *Server) remove(ctx context.Context, obj map[string]any) error {
	path := s.path(obj)
	if obj["kind"] == "Namespace" {
		return s.removeNamespace(ctx, path)
	}
	// Without finalizers, which would wait for controllers that do not run.
	if _, err := s.do(ctx, http.MethodPatch, path, "application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`)); err != nil {
		return err
	}
	r, err := s.do(ctx, http.MethodDelete, path, "application/json", []byte(`{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":0,"propagationPolicy":"Background"}`))
	if err != nil || obj["kind"] != "CustomResourceDefinition" {
		return err
	}
	// A definition goes when its objects have gone.
	for tick := time.NewTicker(10 * time.Millisecond); r.code != http.StatusNotFound; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if r, err = s.do(ctx, http.MethodGet, path, "application/json", nil); err != nil {
			return err
		}
	}
	return nil
}

// removeNamespace also does what the controller that empties namespaces does last.
func (s *Server) removeNamespace(ctx context.Context, path string) error {
	if _, err := s.do(ctx, http.MethodDelete, path, "application/json", nil); err != nil {
		return err
	}
	r, err := s.do(ctx, http.MethodGet, path, "application/json", nil)
	if err != nil || r.code == http.StatusNotFound {
		return err
	}
	ns := map[string]any{}
	if err := json.Unmarshal(r.body, &ns); err != nil {
		return err
	}
	ns["spec"] = map[string]any{}
	body, err := json.Marshal(ns)
	if err != nil {
		return err
	}
	_, err = s.do(ctx, http.MethodPut, path+"/finalize", "application/json", body)
	return err
}

func (s *Server) collection(o map[string]any) string {
	gv, _ := schema.ParseGroupVersion(fmt.Sprint(o["apiVersion"]))
	p, ok := s.paths[gv.WithKind(fmt.Sprint(o["kind"]))]
	if !ok {
		p = place{strings.ToLower(fmt.Sprint(o["kind"])) + "s", true} // let the server say that it is not there
	}
	base := "/apis/" + gv.String()
	if gv.Group == "" {
		base = "/api/" + gv.Version
	}
	if p.namespaced {
		base += "/namespaces/" + namespace
	}
	return base + "/" + p.resource
}

func (s *Server) path(o map[string]any) string {
	meta, _ := o["metadata"].(map[string]any)
	return s.collection(o) + "/" + fmt.Sprint(meta["name"])
}

// send also returns the object that is stored, as it is.
func (s *Server) send(ctx context.Context, method, path string, o map[string]any) (v *Verdict, stored map[string]any, err error) {
	return s.sendFor(ctx, method, path, o, o)
}

// sendFor is send of an object that was made from manifest.
func (s *Server) sendFor(ctx context.Context, method, path string, o, manifest map[string]any) (v *Verdict, stored map[string]any, err error) {
	body, err := json.Marshal(o)
	if err != nil {
		return nil, nil, err
	}
	r, err := s.do(ctx, method, path+"?fieldValidation=Strict&fieldManager=corpus", "application/json", body)
	if err != nil {
		return nil, nil, err
	}
	if r.code < 300 {
		if err := json.Unmarshal(r.body, &stored); err != nil {
			return nil, nil, err
		}
	}
	v, err = verdict(r.code, r.body, manifest)
	return v, stored, err
}

type reply struct {
	code int
	body []byte
}

func (s *Server) do(ctx context.Context, method, path, media string, body []byte) (*reply, error) {
	return s.doAs(ctx, method, path, "application/json", media, body)
}

// doAs is do for an answer in another form.
func (s *Server) doAs(ctx context.Context, method, path, accept, media string, body []byte) (*reply, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.URL+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", media)
	req.Header.Set("Accept", accept)
	resp, err := s.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return &reply{resp.StatusCode, b}, err
}

func (s *Server) get(ctx context.Context, path string, into any) error {
	r, err := s.do(ctx, http.MethodGet, path, "application/json", nil)
	if err != nil {
		return err
	}
	if r.code != http.StatusOK {
		return fmt.Errorf("%s: %d: %s", path, r.code, r.body)
	}
	return json.Unmarshal(r.body, into)
}
