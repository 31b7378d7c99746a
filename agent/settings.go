package agent

import (
	"cmp"
	"maps"

	"k8s.io/apimachinery/pkg/api/resource"

	"knarr.dev/knarr/agent/cpus"
	"knarr.dev/knarr/agent/memory"
	"knarr.dev/knarr/agent/pod"
	"knarr.dev/knarr/agent/podspec"
	"knarr.dev/knarr/agent/topology"
)

// settings is what the agent tells of its configuration, in a kubelet's terms.
func (a *Agent) settings() map[string]any {
	dns := []string{}
	for _, ip := range a.cfg.ClusterDNS {
		dns = append(dns, ip.String())
	}
	out := map[string]any{
		"port": port(a.cfg.Listen), "authentication": map[string]any{"anonymous": map[string]any{"enabled": false}, "webhook": map[string]any{"enabled": true}},
		"authorization": map[string]any{"mode": "Webhook"}, "clusterDomain": a.cfg.ClusterDomain, "clusterDNS": dns, "maxPods": a.cfg.MaxPods,
		"allowedUnsafeSysctls": a.cfg.UnsafeSysctls, "podPidsLimit": cmp.Or(a.cfg.PodPids, -1), "registerWithTaints": a.cfg.Taints,
		"staticPodPath": a.cfg.StaticPodPath, "cgroupRoot": a.cfg.CgroupRoot, "cgroupsPerQOS": true, "enforceNodeAllocatable": []string{"pods"},
		"nodeStatusUpdateFrequency": "10s", "nodeStatusReportFrequency": "5m0s", "nodeLeaseDurationSeconds": 40,
		"containerLogMaxSize": resource.NewQuantity(a.cfg.LogMaxSize, resource.BinarySI).String(), "containerLogMaxFiles": a.cfg.LogMaxFiles,
		"singleProcessOOMKill": a.cfg.SingleProcessOOMKill, "seccompDefault": a.cfg.SeccompDefault, "serializeImagePulls": false,
		"imageGCHighThresholdPercent": a.cfg.ImageGC.High, "imageGCLowThresholdPercent": a.cfg.ImageGC.Low,
		"imageMinimumGCAge": a.cfg.ImageGC.MinAge.String(), "imageMaximumGCAge": a.cfg.ImageGC.MaxAge.String(), "volumeStatsAggPeriod": "0s",
		"crashLoopBackOff": map[string]any{"maxContainerRestartPeriod": cmp.Or(a.cfg.MaxRestart, pod.MaxRestart).String()},
		"memorySwap":       map[string]any{"swapBehavior": cmp.Or(a.cfg.SwapBehavior, podspec.NoSwap)},
		"userNamespaces":   map[string]any{"idsPerPod": a.cfg.Users.PerPod},
	}
	maps.Copy(out, a.cfg.Verify.Settings())
	maps.Copy(out, a.cfg.Exclusive.settings())
	out["healthzPort"] = port(a.cfg.Healthz)
	byPriority := []map[string]any{}
	for _, p := range a.cfg.ShutdownPeriods {
		byPriority = append(byPriority, map[string]any{"priority": p.Priority, "shutdownGracePeriodSeconds": int64(p.Grace.Seconds())})
	}
	if len(byPriority) > 0 {
		out["shutdownGracePeriodByPodPriority"] = byPriority
	}
	return out
}

// settings are those of a kubelet's managers.
func (e *Exclusive) settings() map[string]any {
	options := map[string]string{}
	for name, on := range map[string]bool{"full-pcpus-only": e.CPUOptions.FullCores, "distribute-cpus-across-numa": e.CPUOptions.SpreadNodes, "distribute-cpus-across-cores": e.CPUOptions.SpreadCores,
		"align-by-socket": e.CPUOptions.AlignSocket, "strict-cpu-reservation": e.CPUOptions.StrictReservation, "prefer-align-cpus-by-uncorecache": e.CPUOptions.AlignCache} {
		if on {
			options[name] = "true"
		}
	}
	policy := "none"
	if e.CPUPolicy == cpus.Static {
		policy = cpus.Static
	}
	tied := "None"
	if e.MemoryPolicy == memory.Static {
		tied = memory.Static
	}
	return map[string]any{
		"cpuManagerPolicy": policy, "cpuManagerPolicyOptions": options, "reservedSystemCPUs": e.ReservedCPUs.String(), "memoryManagerPolicy": tied,
		"topologyManagerPolicy": cmp.Or(e.Topology.Policy, topology.None), "topologyManagerScope": cmp.Or(e.Topology.Scope, topology.ScopeContainer),
		"topologyManagerPolicyOptions": e.Topology.Options,
	}
}
