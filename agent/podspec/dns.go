package podspec

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Limits on a pod's resolver configuration.
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchChars = 2048
)

// Where the node's resolvers are written down: of the second kind is a machine with
// systemd-resolved, whose own address means nothing in a pod.
const (
	resolvConf = "/etc/resolv.conf"
	forwarded  = "/run/systemd/resolve/resolv.conf"
)

// ReadResolvConf reads a node's resolvers from a file; empty: from /etc/resolv.conf, or
// from what systemd-resolved forwards to if that names only the machine itself. No file
// has none.
func ReadResolvConf(file string) (*runtimeapi.DNSConfig, error) {
	if file != "" {
		return readResolvConf(file)
	}
	return chooseResolvConf(resolvConf, forwarded)
}

// chooseResolvConf reads the second file if the first names only the machine itself.
func chooseResolvConf(resolvConf, forwarded string) (*runtimeapi.DNSConfig, error) {
	c, err := readResolvConf(resolvConf)
	if err != nil || len(c.Servers) == 0 || slices.ContainsFunc(c.Servers, func(s string) bool { a, err := netip.ParseAddr(s); return err != nil || !a.IsLoopback() }) {
		return c, err
	}
	if f, err := readResolvConf(forwarded); err == nil && len(f.Servers) > 0 {
		return f, nil
	}
	return c, nil
}

func readResolvConf(file string) (*runtimeapi.DNSConfig, error) {
	data, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return ParseResolvConf(data), nil
}

// ParseResolvConf reads the contents of a resolv.conf.
func ParseResolvConf(data []byte) *runtimeapi.DNSConfig {
	c := &runtimeapi.DNSConfig{}
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") || strings.HasPrefix(fields[0], ";") {
			continue
		}
		switch fields[0] {
		case "nameserver":
			c.Servers = append(c.Servers, fields[1])
		case "search", "domain":
			c.Searches = nil
			for _, d := range fields[1:] {
				if d != "." {
					d = strings.TrimSuffix(d, ".")
				}
				c.Searches = append(c.Searches, d)
			}
		case "options":
			c.Options = append(c.Options, fields[1:]...)
		}
	}
	return c
}

// DNS computes a pod's resolver configuration by its dnsPolicy and dnsConfig
// from the node's configuration and the cluster's resolver.
func DNS(pod *corev1.Pod, host *runtimeapi.DNSConfig, cluster []netip.Addr, domain string) *runtimeapi.DNSConfig {
	policy := pod.Spec.DNSPolicy
	if policy == "" {
		policy = corev1.DNSClusterFirst
	}
	if policy == corev1.DNSClusterFirst && pod.Spec.HostNetwork {
		policy = corev1.DNSDefault
	}
	if policy == corev1.DNSClusterFirstWithHostNet {
		policy = corev1.DNSClusterFirst
	}
	if policy == corev1.DNSClusterFirst && len(cluster) == 0 {
		policy = corev1.DNSDefault
	}
	out := &runtimeapi.DNSConfig{}
	switch policy {
	case corev1.DNSNone:
	case corev1.DNSDefault:
		out.Servers, out.Searches, out.Options = slices.Clone(host.Servers), slices.Clone(host.Searches), slices.Clone(host.Options)
	default:
		for _, a := range cluster {
			out.Servers = append(out.Servers, a.String())
		}
		if domain != "" {
			out.Searches = []string{fmt.Sprintf("%s.svc.%s", pod.Namespace, domain), "svc." + domain, domain}
		}
		out.Searches = append(out.Searches, host.Searches...)
		out.Options = []string{"ndots:5"}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		out.Servers = unique(append(out.Servers, c.Nameservers...))
		out.Searches = unique(append(out.Searches, c.Searches...))
		out.Options = mergeOptions(out.Options, c.Options)
	}
	out.Servers = out.Servers[:min(len(out.Servers), maxNameservers)]
	out.Searches = out.Searches[:min(len(out.Searches), maxSearches)]
	for len(strings.Join(out.Searches, " ")) > maxSearchChars {
		out.Searches = out.Searches[:len(out.Searches)-1]
	}
	return out
}

func unique(in []string) []string {
	var out []string
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// mergeOptions lets the pod's options override those of the same name.
func mergeOptions(base []string, add []corev1.PodDNSConfigOption) []string {
	name := func(o string) string { n, _, _ := strings.Cut(o, ":"); return n }
	out := slices.Clone(base)
	for _, o := range add {
		text := o.Name
		if o.Value != nil && *o.Value != "" {
			text += ":" + *o.Value
		}
		if i := slices.IndexFunc(out, func(have string) bool { return name(have) == o.Name }); i >= 0 {
			out[i] = text
		} else {
			out = append(out, text)
		}
	}
	return out
}

// Hostname returns the pod's host name and its domain, "" when it has no
// subdomain. A name longer than the kernel's 63 characters is cut.
func Hostname(pod *corev1.Pod, clusterDomain string) (name, domain string) {
	name = pod.Spec.Hostname
	if pod.Spec.HostnameOverride != nil {
		return *pod.Spec.HostnameOverride, ""
	}
	if name == "" {
		name = pod.Name
		if len(name) > 63 {
			name = strings.TrimRight(name[:63], "-.")
		}
	}
	if pod.Spec.Subdomain != "" {
		domain = fmt.Sprintf("%s.%s.svc.%s", pod.Spec.Subdomain, pod.Namespace, clusterDomain)
	}
	return name, domain
}

// Hosts writes the pod's /etc/hosts. For pods in the node's network, host is the
// node's own file, which is kept and extended.
func Hosts(pod *corev1.Pod, host []byte, ips []string, clusterDomain string) []byte {
	var b bytes.Buffer
	if pod.Spec.HostNetwork {
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.Write(host)
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n")
		b.WriteString("127.0.0.1\tlocalhost\n")
		b.WriteString("::1\tlocalhost ip6-localhost ip6-loopback\n")
		b.WriteString("fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		name, domain := Hostname(pod, clusterDomain)
		for _, ip := range ips {
			if domain != "" {
				fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", ip, name, domain, name)
			} else {
				fmt.Fprintf(&b, "%s\t%s\n", ip, name)
			}
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	return b.Bytes()
}
