// NetworkPolicies, seen from pods: what the operator's chart promises about its pods' reach is worth as much as this.
package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func policyPod(name string, args string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {app: %[1]s}}
spec:
  containers:
  - {name: c, image: "runledger.test/probe:1", args: [/probe, %[2]s], ports: [{name: web, containerPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  selector: {app: %[1]s}
  ports: [{port: 80, targetPort: 8080}]
---`, name, args)
}

// The agent may ask DNS, the model's named port, and nothing else; the ledger takes nobody but the server.
const policies = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: agent}
spec:
  podSelector: {matchLabels: {app: agent}}
  policyTypes: [Egress]
  egress:
  - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]
    ports: [{port: 53, protocol: UDP}, {port: 53}]
  - to: [{podSelector: {matchLabels: {app: model}}}]
    ports: [{port: web}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: ledger}
spec:
  podSelector: {matchLabels: {app: ledger}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: server}}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Egress]
  egress:
  - to: [{ipBlock: {cidr: 0.0.0.0/0, except: [NODE/32]}}]
`

func TestNetworkPoliciesAreEnforced(t *testing.T) {
	c := testCluster(t, "policy")
	mustUp(t, c)
	if out, err := clusterCommand(c, "load-image", testImage).CombinedOutput(); err != nil {
		t.Fatalf("load-image: %v\n%s", err, out)
	}
	serve := `serve, ":8080", hello`
	mustKubectl(t, c, policyPod("agent", "sleep")+policyPod("model", serve)+policyPod("ledger", serve)+policyPod("server", serve), "apply", "-f", "-")
	mustKubectl(t, c, "", "wait", "pod", "--all", "--for=condition=Ready", "--timeout=60s")
	get := func(from, url string) error {
		out, err := kubectl(c, "", "exec", from, "--", "/probe", "get", url)
		if err != nil {
			return fmt.Errorf("%s", out)
		}
		return nil
	}
	node := c.load().NodeIP
	// The API server answers plain HTTP with an error, which is an answer.
	reach := []struct {
		from, url     string
		before, after bool
	}{
		{"agent", "http://model", true, true},
		{"agent", "http://server", true, false},
		{"agent", "http://" + node + ":6443", true, false},
		{"server", "http://ledger", true, true},
		{"server", "http://" + node + ":6443", true, false},
		{"model", "http://ledger", true, false},
	}
	check := func(t *testing.T, want func(i int) bool) {
		for i, r := range reach {
			eventually(t, fmt.Sprintf("%s to %s, want reached: %t", r.from, r.url, want(i)), 15*time.Second, func() error {
				if err := get(r.from, r.url); (err == nil) != want(i) {
					return fmt.Errorf("got %v", err)
				}
				return nil
			})
		}
	}
	check(t, func(i int) bool { return reach[i].before })
	mustKubectl(t, c, strings.ReplaceAll(policies, "NODE", node), "apply", "-f", "-")
	check(t, func(i int) bool { return reach[i].after })
	mustKubectl(t, c, "", "delete", "networkpolicy", "--all")
	check(t, func(i int) bool { return reach[i].before })
	if rules, err := clusterCommand(c, "exec", "--", "iptables", "-S").Output(); err != nil || strings.Contains(string(rules), "NETPOL-") {
		t.Errorf("chains without policies: %v\n%s", err, rules)
	}
}
