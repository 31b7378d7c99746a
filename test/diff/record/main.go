// Command record runs upstream's API server on an etcd and writes down what it
// answers to the corpus:
//
//	go run ./test/diff/record -bin .cache/conformance/bin
//
// make record builds both programs first, from their Go modules.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/client-go/rest"

	"knarr.dev/knarr/test/diff"
	"knarr.dev/knarr/test/upstream"
)

func main() {
	bin := flag.String("bin", ".cache/conformance/bin", "folder of kube-apiserver and etcd")
	dir := flag.String("dir", "test/diff", "folder of corpus and recorded")
	flag.Parse()
	if err := record(context.Background(), *bin, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

func record(ctx context.Context, bin, dir string) error {
	corpus, err := diff.Load(filepath.Join(dir, "corpus"))
	if err != nil {
		return err
	}
	up, err := upstream.Start(ctx, bin)
	if err != nil {
		return err
	}
	defer up.Stop()
	client, err := rest.HTTPClientFor(up.Config)
	if err != nil {
		return err
	}
	server := &diff.Server{URL: up.Config.Host, Client: client}
	if err := server.Prepare(ctx); err != nil {
		return err
	}
	doc, err := server.Describe(ctx)
	if err != nil {
		return err
	}
	if err := write(filepath.Join(dir, "recorded", "openapi.json"), doc); err != nil {
		return err
	}
	if err := write(filepath.Join(dir, "../../apiserver/openapi/facts.json"), doc.Models); err != nil {
		return err
	}
	if err := forms(ctx, server, corpus, dir); err != nil {
		return err
	}
	cases := 0
	for file, list := range corpus {
		out := map[string]*diff.Verdict{}
		for _, c := range list {
			v, err := server.Ask(ctx, c)
			if err != nil {
				return fmt.Errorf("%s: %w", c.Name, err)
			}
			if out[c.Name] != nil {
				return fmt.Errorf("%s: two cases are called so", c.Name)
			}
			out[c.Name] = v
			cases++
		}
		if err := write(filepath.Join(dir, "recorded", file+".json"), out); err != nil {
			return err
		}
	}
	fmt.Printf("%d cases of %d files recorded\n", cases, len(corpus))
	return nil
}

// forms records discovery, and how one object of each kind looks as a table.
func forms(ctx context.Context, s *diff.Server, corpus map[string][]diff.Case, dir string) error {
	d, err := s.Discover(ctx)
	if err != nil {
		return err
	}
	if err := write(filepath.Join(dir, "recorded", "discovery.json"), d); err != nil {
		return err
	}
	if err := s.Define(ctx); err != nil {
		return err
	}
	tables := map[string]*diff.Table{}
	for _, list := range corpus {
		for _, c := range list {
			if !c.First {
				continue
			}
			if tables[c.Name], err = s.AskTable(ctx, c); err != nil {
				return err
			}
		}
	}
	return write(filepath.Join(dir, "recorded", "tables.json"), tables)
}

func write(path string, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(v); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}
