package core

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"knarr.dev/knarr/api/check"
)

func (v *podValidator) checkContainers() {
	s := v.spec
	names, hostPorts := map[string]bool{}, map[string]bool{}
	containers := v.at.Child("containers")
	if len(s.Containers) == 0 {
		v.add(field.Required(containers, ""))
	}
	for i := range s.Containers {
		c, at := &s.Containers[i], containers.Index(i)
		v.checkName(at.Child("name"), c.Name, names)
		v.checkContainer(at, c)
		v.checkHostPorts(at.Child("ports"), c.Ports, hostPorts)
		v.checkRestart(at, c)
		v.checkResize(at.Child("resizePolicy"), c.ResizePolicy)
	}
	for i := range s.InitContainers {
		c, at := &s.InitContainers[i], v.at.Child("initContainers").Index(i)
		v.checkName(at.Child("name"), c.Name, names)
		v.checkContainer(at, c)
		v.checkRestart(at, c)
		v.checkResize(at.Child("resizePolicy"), c.ResizePolicy)
		if isSidecar(c) {
			v.checkHostPorts(at.Child("ports"), c.Ports, hostPorts)
			continue
		}
		for j, p := range c.ResizePolicy {
			if p.RestartPolicy == corev1.RestartContainer {
				v.add(field.Invalid(at.Child("resizePolicy").Index(j).Child("restartPolicy"), p.RestartPolicy, "must not be set to 'RestartContainer' for non-sidecar initContainers"))
			}
		}
		v.checkHostPorts(at.Child("ports"), c.Ports, map[string]bool{})
		for _, f := range []struct {
			name string
			set  bool
		}{{"lifecycle", c.Lifecycle != nil}, {"livenessProbe", c.LivenessProbe != nil}, {"readinessProbe", c.ReadinessProbe != nil}, {"startupProbe", c.StartupProbe != nil}} {
			if f.set {
				v.add(field.Forbidden(at.Child(f.name), "may not be set for init containers without restartPolicy=Always"))
			}
		}
	}
	for i := range s.EphemeralContainers {
		e, at := &s.EphemeralContainers[i], v.at.Child("ephemeralContainers").Index(i)
		c := corev1.Container(e.EphemeralContainerCommon)
		v.checkName(at.Child("name"), c.Name, names)
		v.checkEphemeral(at, &c)
		if e.TargetContainerName != "" && !v.hasContainer(e.TargetContainerName) {
			v.add(field.NotFound(at.Child("targetContainerName"), e.TargetContainerName))
		}
	}
}

// checkEphemeral checks a container that is there for a look: it serves nobody, and
// nobody restarts it.
func (v *podValidator) checkEphemeral(at *field.Path, c *corev1.Container) {
	for _, f := range []struct {
		name string
		set  bool
	}{{"ports", len(c.Ports) > 0}, {"resources", len(c.Resources.Requests)+len(c.Resources.Limits)+len(c.Resources.Claims) > 0},
		{"livenessProbe", c.LivenessProbe != nil}, {"readinessProbe", c.ReadinessProbe != nil}, {"startupProbe", c.StartupProbe != nil},
		{"lifecycle", c.Lifecycle != nil}, {"resizePolicy", len(c.ResizePolicy) > 0},
		{"restartPolicy", c.RestartPolicy != nil}, {"restartPolicyRules", len(c.RestartPolicyRules) > 0}} {
		if f.set {
			v.add(field.Forbidden(at.Child(f.name), "cannot be set for an Ephemeral Container"))
		}
	}
	for i, m := range c.VolumeMounts {
		at := at.Child("volumeMounts").Index(i)
		if m.SubPath != "" {
			v.add(field.Forbidden(at.Child("subPath"), "cannot be set for an Ephemeral Container"))
		}
		if m.SubPathExpr != "" {
			v.add(field.Forbidden(at.Child("subPathExpr"), "cannot be set for an Ephemeral Container"))
		}
	}
	v.checkResize(at.Child("resizePolicy"), c.ResizePolicy)
	allowed := *c
	allowed.LivenessProbe, allowed.ReadinessProbe, allowed.StartupProbe, allowed.Lifecycle = nil, nil, nil, nil
	v.checkContainer(at, &allowed)
}

// isSidecar tells whether an init container stays beside the containers.
func isSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func (v *podValidator) hasContainer(name string) bool {
	for _, list := range [][]corev1.Container{v.spec.Containers, v.spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return true
			}
		}
	}
	return false
}

func (v *podValidator) checkName(at *field.Path, name string, seen map[string]bool) {
	switch {
	case name == "":
		v.add(field.Required(at, ""))
		return
	case seen[name]:
		v.add(field.Duplicate(at, name))
	}
	v.add(check.DNSLabel(at, name)...)
	seen[name] = true
}

func (v *podValidator) checkContainer(at *field.Path, c *corev1.Container) {
	switch {
	case c.Image == "":
		v.add(field.Required(at.Child("image"), ""))
	case strings.TrimSpace(c.Image) != c.Image:
		v.add(field.Invalid(at.Child("image"), c.Image, "must not have leading or trailing whitespace"))
	}
	v.add(check.OneOf(at.Child("imagePullPolicy"), c.ImagePullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)...)
	v.add(check.OneOf(at.Child("terminationMessagePolicy"), c.TerminationMessagePolicy, corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)...)
	v.checkPorts(at.Child("ports"), c.Ports)
	for i := range c.Env {
		v.checkEnv(at.Child("env").Index(i), &c.Env[i])
	}
	for i := range c.EnvFrom {
		v.checkEnvFrom(at.Child("envFrom"), i, &c.EnvFrom[i])
	}
	v.checkMounts(at, c)
	v.add(checkRequirements(at.Child("resources"), &c.Resources)...)
	v.checkClaims(at.Child("resources", "claims"), c.Resources.Claims)
	v.checkProbe(at.Child("livenessProbe"), c.LivenessProbe, true)
	v.checkProbe(at.Child("startupProbe"), c.StartupProbe, true)
	v.checkProbe(at.Child("readinessProbe"), c.ReadinessProbe, false)
	if p := c.ReadinessProbe; p != nil && p.TerminationGracePeriodSeconds != nil {
		v.add(field.Invalid(at.Child("readinessProbe", "terminationGracePeriodSeconds"), *p.TerminationGracePeriodSeconds, "must not be set for readinessProbes"))
	}
	if l := c.Lifecycle; l != nil {
		v.checkLifecycle(at.Child("lifecycle", "postStart"), l.PostStart)
		v.checkLifecycle(at.Child("lifecycle", "preStop"), l.PreStop)
	}
	v.checkContainerSecurity(at.Child("securityContext"), c.SecurityContext)
}

func (v *podValidator) checkPorts(at *field.Path, ports []corev1.ContainerPort) {
	names := map[string]bool{}
	for i, p := range ports {
		at := at.Index(i)
		if p.Name != "" {
			if msgs := validation.IsValidPortName(p.Name); len(msgs) > 0 {
				v.add(check.Each(at.Child("name"), p.Name, msgs)...)
			} else if names[p.Name] {
				v.add(field.Duplicate(at.Child("name"), p.Name))
			}
			names[p.Name] = true
		}
		if p.ContainerPort == 0 {
			v.add(field.Required(at.Child("containerPort"), ""))
		} else {
			v.add(check.Port(at.Child("containerPort"), p.ContainerPort)...)
		}
		if p.HostPort != 0 {
			v.add(check.Port(at.Child("hostPort"), p.HostPort)...)
		}
		v.add(check.OneOf(at.Child("protocol"), p.Protocol, protocols...)...)
	}
}

var protocols = []corev1.Protocol{corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP}

func (v *podValidator) checkHostPorts(at *field.Path, ports []corev1.ContainerPort, seen map[string]bool) {
	for i, p := range ports {
		if v.spec.HostNetwork && p.HostPort != p.ContainerPort && p.HostPort != 0 {
			v.add(field.Invalid(at.Index(i).Child("hostPort"), p.HostPort, "must match `containerPort` when `hostNetwork` is true"))
		}
		if p.HostPort == 0 {
			continue
		}
		key := fmt.Sprintf("%s/%s/%d", p.Protocol, p.HostIP, p.HostPort)
		if seen[key] {
			v.add(field.Duplicate(at.Index(i).Child("hostPort"), key))
		}
		seen[key] = true
	}
}

func (v *podValidator) checkProbe(at *field.Path, p *corev1.Probe, once bool) {
	if p == nil {
		return
	}
	v.checkHandler(at, handler{exec: p.Exec, http: p.HTTPGet, tcp: p.TCPSocket, grpc: p.GRPC})
	for _, n := range []struct {
		name  string
		value int32
	}{{"initialDelaySeconds", p.InitialDelaySeconds}, {"timeoutSeconds", p.TimeoutSeconds}, {"periodSeconds", p.PeriodSeconds},
		{"successThreshold", p.SuccessThreshold}, {"failureThreshold", p.FailureThreshold}} {
		v.add(check.NonNegative(at.Child(n.name), n.value)...)
	}
	if t := p.TerminationGracePeriodSeconds; t != nil && *t <= 0 {
		v.add(field.Invalid(at.Child("terminationGracePeriodSeconds"), *t, "must be greater than 0"))
	}
	if once && p.SuccessThreshold != 1 {
		v.add(field.Invalid(at.Child("successThreshold"), p.SuccessThreshold, "must be 1"))
	}
}

func (v *podValidator) checkLifecycle(at *field.Path, h *corev1.LifecycleHandler) {
	if h != nil {
		v.checkHandler(at, handler{exec: h.Exec, http: h.HTTPGet, tcp: h.TCPSocket, sleep: h.Sleep})
	}
}

// handler is the union of what probes and lifecycle hooks can do.
type handler struct {
	exec  *corev1.ExecAction
	http  *corev1.HTTPGetAction
	tcp   *corev1.TCPSocketAction
	grpc  *corev1.GRPCAction
	sleep *corev1.SleepAction
}

func (v *podValidator) checkHandler(at *field.Path, h handler) {
	n := 0
	// Only the first handler is looked into: the others are too many.
	first := func(name string, set bool) bool {
		if !set {
			return false
		}
		if n++; n > 1 {
			v.add(field.Forbidden(at.Child(name), "may not specify more than 1 handler type"))
		}
		return n == 1
	}
	if first("exec", h.exec != nil) && len(h.exec.Command) == 0 {
		v.add(field.Required(at.Child("exec", "command"), ""))
	}
	if first("httpGet", h.http != nil) {
		at := at.Child("httpGet")
		v.add(check.Required(at.Child("path"), h.http.Path)...)
		v.checkPort(at.Child("port"), h.http.Port)
		v.add(check.OneOf(at.Child("scheme"), h.http.Scheme, corev1.URISchemeHTTP, corev1.URISchemeHTTPS)...)
		for _, header := range h.http.HTTPHeaders {
			v.add(check.Each(at.Child("httpHeaders"), header.Name, validation.IsHTTPHeaderName(header.Name))...)
		}
	}
	if first("tcpSocket", h.tcp != nil) {
		v.checkPort(at.Child("tcpSocket", "port"), h.tcp.Port)
	}
	if first("grpc", h.grpc != nil) {
		v.add(check.Port(at.Child("grpc", "port"), h.grpc.Port)...)
	}
	if first("sleep", h.sleep != nil) {
		at, limit := at.Child("sleep"), int64(corev1.DefaultTerminationGracePeriodSeconds)
		if g := v.spec.TerminationGracePeriodSeconds; g != nil {
			limit = *g
		}
		if h.sleep.Seconds < 0 || h.sleep.Seconds > limit {
			v.add(field.Invalid(at, h.sleep.Seconds, fmt.Sprintf("must be non-negative and less than terminationGracePeriodSeconds (%d)", limit)))
		}
	}
	if n == 0 {
		v.add(field.Required(at, "must specify a handler type"))
	}
}

func (v *podValidator) checkPort(at *field.Path, p intstr.IntOrString) {
	v.add(check.PortNumberOrName(at, p)...)
}
