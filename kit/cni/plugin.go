package cni

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
)

// versions are those of the specification that the plugin speaks, oldest first.
var versions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// Codes of errors, from the specification.
const (
	codeVersion     = 1
	codeEnvironment = 4
	codeDecode      = 6
	codeLater       = 11
	codeUnavailable = 50
	codeOwn         = 100
)

// config is what the runtime hands to the plugin on its standard input.
type config struct {
	Version string `json:"cniVersion"`
	Name    string `json:"name,omitempty"`
	Type    string `json:"type,omitempty"`
	Socket  string `json:"socket,omitempty"`
}

type failure struct {
	Version string `json:"cniVersion"`
	Code    int    `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details,omitempty"`
}

type result struct {
	Version    string            `json:"cniVersion"`
	Interfaces []resultInterface `json:"interfaces"`
	IPs        []resultIP        `json:"ips"`
	Routes     []resultRoute     `json:"routes"`
	DNS        struct{}          `json:"dns"`
}

type resultInterface struct {
	Name    string `json:"name"`
	Sandbox string `json:"sandbox"`
}

type resultIP struct {
	// Version is "4" or "6", until version 0.4.0 of the specification.
	Version   string       `json:"version,omitempty"`
	Address   netip.Prefix `json:"address"`
	Gateway   netip.Addr   `json:"gateway,omitzero"`
	Interface int          `json:"interface"`
}

type resultRoute struct {
	Dst netip.Prefix `json:"dst"`
}

// Plugin is the program that runtimes execute: env looks up its environment. It
// returns the exit code.
func Plugin(env func(string) string, in io.Reader, out io.Writer) int {
	var c config
	write := func(v any) {
		// The runtime has gone if this fails: the exit code is all that is left.
		_ = json.NewEncoder(out).Encode(v)
	}
	fail := func(code int, msg, details string) int {
		v := c.Version
		if v == "" {
			v = versions[len(versions)-1]
		}
		write(failure{v, code, msg, details})
		return 1
	}
	if err := json.NewDecoder(io.LimitReader(in, 1<<20)).Decode(&c); err != nil {
		return fail(codeDecode, "the network configuration cannot be read", err.Error())
	}
	command := env("CNI_COMMAND")
	if command == "VERSION" {
		write(map[string]any{"cniVersion": versions[len(versions)-1], "supportedVersions": versions})
		return 0
	}
	if !slices.Contains(versions, c.Version) {
		return fail(codeVersion, fmt.Sprintf("CNI version %q is not supported", c.Version), fmt.Sprintf("supported are %v", versions))
	}
	if command == "GC" {
		return 0 // the node's process finds by itself who is gone
	}
	if c.Type == LoopbackProgram {
		if ns := env("CNI_NETNS"); command == "ADD" {
			if err := loopbackUp(ns); err != nil {
				return fail(codeOwn, "the loopback link", err.Error())
			}
			write(loopbackResult(c.Version, ns))
		}
		return 0
	}
	q := request{Command: command, Container: env("CNI_CONTAINERID"), Netns: env("CNI_NETNS")}
	switch {
	case command != "ADD" && command != "DEL" && command != "CHECK" && command != "STATUS":
		return fail(codeEnvironment, fmt.Sprintf("CNI_COMMAND %q is unknown", command), "")
	case command != "STATUS" && q.Container == "":
		return fail(codeEnvironment, "CNI_CONTAINERID is missing", "")
	case command == "ADD" && q.Netns == "":
		return fail(codeEnvironment, "CNI_NETNS is missing", "")
	case command == "ADD" && env("CNI_IFNAME") != "eth0":
		return fail(codeEnvironment, fmt.Sprintf("CNI_IFNAME is %q", env("CNI_IFNAME")), "the link is always called eth0")
	}
	a, err := ask(c.Socket, q)
	if err != nil {
		code := codeLater
		if command == "STATUS" {
			code = codeUnavailable
		}
		return fail(code, "the node agent does not answer", err.Error())
	}
	if a.Error != "" {
		return fail(codeOwn, a.Error, "")
	}
	if command == "ADD" {
		write(resultOf(c.Version, q.Netns, a))
	}
	return 0
}

func resultOf(version, netns string, a *response) result {
	r := result{Version: version, Interfaces: []resultInterface{{Name: "eth0", Sandbox: netns}}, IPs: []resultIP{}, Routes: []resultRoute{}}
	for _, addr := range a.Addresses {
		ip := resultIP{Address: netip.PrefixFrom(addr, addr.BitLen())}
		all := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if addr.Is4() {
			all = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		if a.Gateway.BitLen() == addr.BitLen() {
			ip.Gateway = a.Gateway
		}
		if version[0] == '0' {
			ip.Version = "6"
			if addr.Is4() {
				ip.Version = "4"
			}
		}
		r.IPs, r.Routes = append(r.IPs, ip), append(r.Routes, resultRoute{all})
	}
	return r
}
