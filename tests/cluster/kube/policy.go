// What NetworkPolicies mean, as iptables rules: pure, from a snapshot of objects to the input of iptables-restore.
// Rules see packets after kube-proxy has replaced a service's address by a pod's, which is what policies are about.
package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	top = "NETPOL"
	// allowed marks a packet that some policy lets through; kube-proxy's marks are other bits.
	allowed = "0x100000/0x100000"
)

type snapshot struct {
	pods       []*corev1.Pod
	namespaces []*corev1.Namespace
	policies   []*networkingv1.NetworkPolicy
}

// match is one alternative of a rule: what a packet has to be. No matches means everything.
type match []string

// chains lists every chain's rules. A pod that some policy selects has a chain for the direction: policies mark what they
// allow, and what is unmarked in the end is refused, not dropped, so that tests see it at once.
func (s snapshot) chains() map[string][]string {
	chains := map[string][]string{top: {"-m conntrack --ctstate ESTABLISHED,RELATED -j RETURN"}}
	pods := slices.Clone(s.pods)
	slices.SortFunc(pods, func(a, b *corev1.Pod) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	policies := slices.Clone(s.policies)
	slices.SortFunc(policies, func(a, b *networkingv1.NetworkPolicy) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	// All egress chains come before all ingress chains: a packet between two pods has to pass both.
	for _, direction := range []networkingv1.PolicyType{networkingv1.PolicyTypeEgress, networkingv1.PolicyTypeIngress} {
		own := "-s"
		if direction == networkingv1.PolicyTypeIngress {
			own = "-d"
		}
		for _, pod := range pods {
			if !addressed(pod) {
				continue
			}
			chain := chainName(direction, pod.Status.PodIP)
			isolated := false
			var body []string
			for _, policy := range policies {
				if policy.Namespace != pod.Namespace || !selects(&policy.Spec.PodSelector, pod.Labels) || !concerns(policy, direction) {
					continue
				}
				isolated = true
				for _, m := range s.matches(policy, pod, direction, chains) {
					body = append(body, strings.Join(m, " "))
				}
			}
			if !isolated {
				continue
			}
			slices.Sort(body)
			chains[chain] = append([]string{"-j MARK --set-xmark 0x0/0x100000"}, slices.Compact(body)...)
			chains[chain] = append(chains[chain], "-m mark ! --mark "+allowed+" -j REJECT")
			chains[top] = append(chains[top], fmt.Sprintf("%s %s/32 -j %s", own, pod.Status.PodIP, chain))
		}
	}
	return chains
}

// render writes the chains for iptables-restore, and deletes those of before that are no longer among them.
func render(chains, before map[string][]string) string {
	stale := map[string][]string{}
	for name := range before {
		if _, ok := chains[name]; !ok {
			stale[name] = nil
		}
	}
	var out strings.Builder
	out.WriteString("*filter\n")
	for _, name := range slices.Sorted(maps.Keys(chains)) {
		fmt.Fprintf(&out, ":%s - [0:0]\n", name)
	}
	for _, name := range slices.Sorted(maps.Keys(stale)) {
		fmt.Fprintf(&out, ":%s - [0:0]\n", name) // an emptied chain refers to no other, so all can be deleted
	}
	for _, name := range slices.Sorted(maps.Keys(chains)) {
		for _, rule := range chains[name] {
			fmt.Fprintf(&out, "-A %s %s\n", name, rule)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(stale)) {
		fmt.Fprintf(&out, "-X %s\n", name)
	}
	out.WriteString("COMMIT\n")
	return out.String()
}

// matches lists the rules by which one policy allows packets of one pod; blocks with exceptions get chains.
func (s snapshot) matches(policy *networkingv1.NetworkPolicy, pod *corev1.Pod, direction networkingv1.PolicyType, chains map[string][]string) []match {
	var all []match
	add := func(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) {
		side := "-d"
		if direction == networkingv1.PolicyTypeIngress {
			side = "-s"
		}
		for _, target := range s.targets(policy.Namespace, peers, side, chains) {
			// A named port belongs to whoever receives the packet.
			receiver := target.pod
			if direction == networkingv1.PolicyTypeIngress {
				receiver = pod
			}
			for _, port := range portMatches(ports, receiver) {
				all = append(all, slices.Concat(target.match, port, match{"-j", target.jump}))
			}
		}
	}
	if direction == networkingv1.PolicyTypeEgress {
		for _, rule := range policy.Spec.Egress {
			add(rule.To, rule.Ports)
		}
	} else {
		for _, rule := range policy.Spec.Ingress {
			add(rule.From, rule.Ports)
		}
	}
	return all
}

type target struct {
	match match
	pod   *corev1.Pod // nil for addresses that are no pod's
	jump  string
}

const accept = "MARK --set-xmark " + allowed

func (s snapshot) targets(namespace string, peers []networkingv1.NetworkPolicyPeer, side string, chains map[string][]string) []target {
	if len(peers) == 0 {
		return []target{{jump: accept}}
	}
	var all []target
	for _, peer := range peers {
		if block := peer.IPBlock; block != nil {
			if strings.Contains(block.CIDR, ":") {
				continue // the cluster's pods have IPv4 only
			}
			jump := accept
			if len(block.Except) > 0 {
				jump = blockChain(block, side)
				chains[jump] = nil
				for _, except := range block.Except {
					chains[jump] = append(chains[jump], side+" "+except+" -j RETURN")
				}
				chains[jump] = append(chains[jump], "-j "+accept)
			}
			all = append(all, target{match: match{side, block.CIDR}, jump: jump})
			continue
		}
		for _, pod := range s.pods {
			if !addressed(pod) || peer.PodSelector != nil && !selects(peer.PodSelector, pod.Labels) {
				continue
			}
			if peer.NamespaceSelector == nil && pod.Namespace != namespace ||
				peer.NamespaceSelector != nil && !selects(peer.NamespaceSelector, s.namespaceLabels(pod.Namespace)) {
				continue
			}
			all = append(all, target{match: match{side, pod.Status.PodIP + "/32"}, pod: pod, jump: accept})
		}
	}
	return all
}

// portMatches has one empty match when every port is meant, and none when a name is nobody's.
func portMatches(ports []networkingv1.NetworkPolicyPort, receiver *corev1.Pod) []match {
	if len(ports) == 0 {
		return []match{nil}
	}
	var all []match
	for _, port := range ports {
		protocol := corev1.ProtocolTCP
		if port.Protocol != nil {
			protocol = *port.Protocol
		}
		m := match{"-p", strings.ToLower(string(protocol))}
		switch {
		case port.Port == nil:
			all = append(all, m)
		case port.Port.Type == intstr.Int && port.EndPort != nil:
			all = append(all, append(m, "--dport", fmt.Sprintf("%d:%d", port.Port.IntVal, *port.EndPort)))
		case port.Port.Type == intstr.Int:
			all = append(all, append(m, "--dport", fmt.Sprint(port.Port.IntVal)))
		case receiver != nil:
			for _, container := range slices.Concat(receiver.Spec.InitContainers, receiver.Spec.Containers) {
				for _, p := range container.Ports {
					if p.Name == port.Port.StrVal && cmp.Or(p.Protocol, corev1.ProtocolTCP) == protocol {
						all = append(all, append(slices.Clone(m), "--dport", fmt.Sprint(p.ContainerPort)))
					}
				}
			}
		}
	}
	return all
}

// addressed says whether packets can be told to be the pod's: it has an address, no other pod has it, and it is not
// the node's.
func addressed(pod *corev1.Pod) bool {
	return pod.Status.PodIP != "" && !pod.Spec.HostNetwork &&
		pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed
}

func concerns(policy *networkingv1.NetworkPolicy, direction networkingv1.PolicyType) bool {
	return slices.Contains(policy.Spec.PolicyTypes, direction) // the API server fills in the default
}

func selects(selector *metav1.LabelSelector, set map[string]string) bool {
	s, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && s.Matches(labels.Set(set))
}

func (s snapshot) namespaceLabels(name string) map[string]string {
	for _, namespace := range s.namespaces {
		if namespace.Name == name {
			return namespace.Labels
		}
	}
	return nil
}

func chainName(direction networkingv1.PolicyType, ip string) string {
	return fmt.Sprintf("%s-%c-%s", top, direction[0], ip)
}

func blockChain(block *networkingv1.IPBlock, side string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %q", side, block.CIDR, block.Except))
	return top + "-B-" + hex.EncodeToString(sum[:6])
}
