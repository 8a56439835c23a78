// What runs in a cluster: each component's flags and configuration files. It owns every setting that differs from the
// component's default, each for a reason given here; starting and restarting them is init.go's.
package main

import (
	"fmt"
	"os"
	"strings"
)

type component struct {
	name string
	args []string
}

// storage comes first: everything else talks to the API server, and that to etcd.
func storage(c cluster, s *state) []component {
	kube := s.Bin + "/kube"
	pki := func(file string) string { return c.path("pki", file) }
	return []component{
		// etcd listens on the loopback of the cluster's own network namespace, so it needs no TLS. The cluster does not
		// outlive its machine, so nothing is gained by waiting for the disk.
		{"etcd", []string{kube, "etcd", "--name=default", "--data-dir=" + c.path("etcd"),
			"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster=default=http://127.0.0.1:2380",
			"--unsafe-no-fsync", "--log-level=warn", "--quota-backend-bytes=6442450944"}},
		{"containerd", []string{"containerd", "--config", c.path("config", "containerd.toml")}},
		{"kube-apiserver", []string{kube, "kube-apiserver",
			"--etcd-servers=http://127.0.0.1:2379",
			"--advertise-address=" + s.NodeIP, "--secure-port=6443",
			"--service-cluster-ip-range=" + serviceCIDR,
			"--client-ca-file=" + pki("ca.crt"),
			"--tls-cert-file=" + pki("kube-apiserver.crt"), "--tls-private-key-file=" + pki("kube-apiserver.key"),
			"--kubelet-certificate-authority=" + pki("ca.crt"),
			"--kubelet-client-certificate=" + pki("apiserver-to-kubelet.crt"),
			"--kubelet-client-key=" + pki("apiserver-to-kubelet.key"),
			// Nobody resolves the node's name; logs and exec go to its address.
			"--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc." + domain,
			"--service-account-key-file=" + pki("service-account.pub"),
			"--service-account-signing-key-file=" + pki("service-account.key"),
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
			// As all clusters have it from 1.36 on.
			"--feature-gates=MutatingAdmissionPolicy=true", "--runtime-config=admissionregistration.k8s.io/v1beta1=true",
			"--allow-privileged=true",
			// Tests count writes in this file: every line is there when its request is answered, and it never rotates.
			"--audit-policy-file=" + c.path("config", "audit.yaml"), "--audit-log-path=" + c.auditLog(),
			"--audit-log-mode=blocking", "--audit-log-maxsize=100000"}},
	}
}

// the rest starts once the API server answers, as all of it would only fail and back off before.
func rest(c cluster, s *state) []component {
	kube := s.Bin + "/kube"
	config := func(file string) string { return c.path("config", file) }
	// One of each runs, so an election would only delay the start. The default limits on their requests would make a
	// burst of pods measure client-go.
	single := func(kubeconfig string) []string {
		return []string{"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig,
			"--authorization-kubeconfig=" + kubeconfig, "--leader-elect=false", "--bind-address=127.0.0.1",
			"--kube-api-qps=2000", "--kube-api-burst=4000"}
	}
	return []component{
		{"kube-controller-manager", append([]string{kube, "kube-controller-manager",
			"--root-ca-file=" + c.path("pki", "ca.crt"),
			"--service-account-private-key-file=" + c.path("pki", "service-account.key"),
			"--cluster-signing-cert-file=" + c.path("pki", "ca.crt"), "--cluster-signing-key-file=" + c.path("pki", "ca.key"),
			"--use-service-account-credentials=true",
			"--flex-volume-plugin-dir=" + c.path("kubelet", "plugins-exec"),
		}, single(config("controller-manager.kubeconfig"))...)},
		{"kube-scheduler", append([]string{kube, "kube-scheduler"}, single(config("scheduler.kubeconfig"))...)},
		{"kubelet", []string{kube, "kubelet", "--config=" + config("kubelet.yaml"),
			"--kubeconfig=" + config("kubelet.kubeconfig"), "--root-dir=" + c.path("kubelet"),
			"--hostname-override=" + nodeName, "--node-ip=" + s.NodeIP}},
		// The conntrack limits are the host's; zero leaves them alone.
		{"kube-proxy", []string{kube, "kube-proxy", "--kubeconfig=" + config("proxy.kubeconfig"), "--proxy-mode=iptables",
			"--hostname-override=" + nodeName, "--cluster-cidr=" + podCIDR,
			"--iptables-min-sync-period=100ms",
			"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"}},
		{"provisioner", []string{kube, "provisioner", "--kubeconfig=" + config("provisioner.kubeconfig"),
			"--directory=" + c.path("volumes")}},
		{"netpol", []string{kube, "netpol", "--kubeconfig=" + config("netpol.kubeconfig")}},
	}
}

// writeConfig writes the files that the components' flags name.
func writeConfig(c cluster, s *state) error {
	for _, dir := range []string{"logs", "volumes", "containerd", "kubelet", "etcd"} {
		mode := os.FileMode(0o755)
		if dir == "etcd" {
			mode = 0o700
		}
		if err := os.MkdirAll(c.path(dir), mode); err != nil {
			return err
		}
	}
	plugins, err := cniPlugins()
	if err != nil {
		return err
	}
	for file, content := range map[string]string{
		"config/audit.yaml":      auditPolicy,
		"config/containerd.toml": containerdConfig(c, plugins, snapshotter(c)),
		"config/kubelet.yaml":    kubeletConfig(c, s),
		"config/resolv.conf":     resolvConf(s),
		"cni/10-pods.conflist":   cniConfig(c),
	} {
		if err := writeFile(c.path(file), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  verbs: [create, update, patch, delete, deletecollection]
- level: None
`

// containerdConfig keeps containerd off everything of the host's own containerd, and names a sandbox image that is
// imported, as none can be pulled.
func containerdConfig(c cluster, plugins, snapshotter string) string {
	return fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]

[grpc]
  address = %q

[plugins."io.containerd.internal.v1.opt"]
  path = %q

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  # Without CAP_SYS_RESOURCE a process may not lower its score, and every sandbox would fail.
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = %q
  default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = %q
  conf_dir = %q
`, c.path("containerd", "root"), c.path("containerd", "state"), c.containerdSocket(), c.path("containerd", "opt"),
		pauseImage, snapshotter, plugins, c.path("cni"))
}

// kubeletConfig: the node is the machine that people work on, so it must not be judged by the kubelet's usual limits
// (a nearly full disk would evict pods), and images that were imported must never be collected.
func kubeletConfig(c cluster, s *state) string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /%s
containerRuntimeEndpoint: unix://%s
clusterDNS: [%s]
clusterDomain: %s
resolvConf: %s
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %s}
authorization: {mode: Webhook}
tlsCertFile: %s
tlsPrivateKeyFile: %s
podLogsDir: %s
volumePluginDir: %s
maxPods: 250
failSwapOn: false
serializeImagePulls: false
configMapAndSecretChangeDetectionStrategy: Watch
kubeAPIQPS: 200
kubeAPIBurst: 400
eventRecordQPS: 0
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard:
  memory.available: 100Mi
  nodefs.available: 100Mi
  imagefs.available: 100Mi
  nodefs.inodesFree: "1%%"
evictionPressureTransitionPeriod: 10s
`, s.Cgroup, c.containerdSocket(), dnsService, domain, c.path("config", "resolv.conf"), c.path("pki", "ca.crt"),
		c.path("pki", "kubelet.crt"), c.path("pki", "kubelet.key"), c.path("logs", "pods"),
		c.path("kubelet", "plugins-exec"))
}

// cniConfig routes each pod through a pair of its own instead of a bridge: packets between pods then always pass the
// node's iptables, and no kernel module for bridges is needed.
func cniConfig(c cluster) string {
	return fmt.Sprintf(`{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [
    {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "dataDir": %q,
      "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}
  ]
}
`, c.path("cni", "ipam"), podCIDR)
}

// resolvConf is what CoreDNS and pods with dnsPolicy Default ask. A resolver on the host's loopback is out of reach.
func resolvConf(s *state) string {
	if !s.Egress {
		return ""
	}
	for _, file := range []string{"/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"} {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		var kept []string
		for _, line := range strings.Split(string(data), "\n") {
			if f := strings.Fields(line); len(f) == 2 && f[0] == "nameserver" && !strings.HasPrefix(f[1], "127.") && f[1] != "::1" {
				kept = append(kept, line)
			}
		}
		if len(kept) > 0 {
			return strings.Join(kept, "\n") + "\n"
		}
	}
	return ""
}
