package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Program is the name under which runtimes find the plugin.
const Program = "knarr-cni"

// Place is where a runtime looks for networks.
type Place struct {
	// ConfDir has the networks' configurations, of which the first by name is used;
	// BinDir the plugins.
	ConfDir, BinDir string
	// Name is the network's.
	Name string
}

func (p Place) file() string { return filepath.Join(p.ConfDir, "10-"+p.Name+".conflist") }
func (p Place) link() string { return filepath.Join(p.BinDir, Program) }

// loopback is a link to the plugin of that name, unless there is another.
func (p Place) loopback() string { return filepath.Join(p.BinDir, LoopbackProgram) }

// Install has the runtime attach sandboxes through socket: exe is the program that
// is Plugin when it is called by the name Program.
func (p Place) Install(exe, socket string) error {
	for _, dir := range []string{p.ConfDir, p.BinDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("CNI: %w", err)
		}
	}
	tmp := p.link() + "." + p.Name
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("CNI plugin: %w", err)
	}
	if err := os.Symlink(exe, tmp); err != nil {
		return fmt.Errorf("CNI plugin: %w", err)
	}
	if err := os.Rename(tmp, p.link()); err != nil {
		return fmt.Errorf("CNI plugin: %w", err)
	}
	if _, err := os.Lstat(p.loopback()); errors.Is(err, os.ErrNotExist) {
		if err := os.Symlink(Program, p.loopback()); err != nil {
			return fmt.Errorf("CNI plugin: %w", err)
		}
	}
	version := "1.0.0" // the newest that every runtime in use reads
	b, err := json.MarshalIndent(map[string]any{
		"cniVersion": version, "name": p.Name, "plugins": []any{config{Version: version, Type: Program, Socket: socket}},
	}, "", "  ")
	if err != nil {
		return err
	}
	// Runtimes watch the folder and read only what is called .conflist.
	if err := os.WriteFile(p.file()+".new", append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("CNI configuration: %w", err)
	}
	if err := os.Rename(p.file()+".new", p.file()); err != nil {
		return fmt.Errorf("CNI configuration: %w", err)
	}
	return nil
}

// Remove undoes Install; a plugin that other networks use stays.
func (p Place) Remove() error {
	if err := os.Remove(p.file()); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("CNI configuration: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(p.ConfDir, "*"))
	if err != nil {
		return err
	}
	for _, f := range left {
		b, err := os.ReadFile(f)
		var l struct {
			Plugins []config `json:"plugins"`
		}
		if err == nil && json.Unmarshal(b, &l) == nil && len(l.Plugins) > 0 && l.Plugins[0].Type == Program {
			return nil
		}
	}
	links := []string{p.link()}
	if to, err := os.Readlink(p.loopback()); err == nil && to == Program {
		links = append(links, p.loopback())
	}
	for _, l := range links {
		if err := os.Remove(l); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("CNI plugin: %w", err)
		}
	}
	return nil
}
