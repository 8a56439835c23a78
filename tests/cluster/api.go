// The little that `up` asks of the API server: whether things are there and ready. Objects are applied with kubectl.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"
)

type api struct {
	c      cluster
	s      *state
	base   string
	client *http.Client
}

// newAPI authenticates as the client that the API server itself uses, whose certificate lies in a file of its own.
func newAPI(c cluster, s *state) (*api, error) {
	pair, err := tls.LoadX509KeyPair(c.path("pki", "apiserver-to-kubelet.crt"), c.path("pki", "apiserver-to-kubelet.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(c.path("pki", "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &api{c: c, s: s, base: "https://" + net.JoinHostPort(s.NodeIP, "6443"), client: &http.Client{
		Timeout:   3 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}},
	}}, nil
}

func (a *api) get(path string, into any) error {
	resp, err := a.client.Get(a.base + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(body, into)
}

// apply is server-side, so that doing it again changes nothing.
func (a *api) apply(manifest string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, a.s.Bin+"/kubectl", "--kubeconfig", a.c.kubeconfig(), "apply", "--server-side", "--field-manager=cluster", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("applying the cluster's own objects: %w\n%s", err, out)
	}
	return nil
}

// ready says what is still missing; nil means that tests may begin.
func (a *api) ready() error {
	if err := a.get("/readyz", nil); err != nil {
		return fmt.Errorf("the API server is not ready: %w", err)
	}
	if err := a.nodeReady(); err != nil {
		return err
	}
	var deployment struct {
		Status struct{ AvailableReplicas int }
	}
	if err := a.get("/apis/apps/v1/namespaces/kube-system/deployments/coredns", &deployment); err != nil {
		return fmt.Errorf("CoreDNS: %w", err)
	}
	if deployment.Status.AvailableReplicas < 1 {
		return fmt.Errorf("CoreDNS is not available yet")
	}
	if err := a.get("/apis/storage.k8s.io/v1/storageclasses/local", nil); err != nil {
		return fmt.Errorf("the default StorageClass: %w", err)
	}
	// Pods are refused before their namespace's account is there.
	if err := a.get("/api/v1/namespaces/default/serviceaccounts/default", nil); err != nil {
		return fmt.Errorf("the default service account: %w", err)
	}
	return nil
}

func (a *api) nodeReady() error {
	var node struct {
		Status struct {
			Conditions []struct{ Type, Status, Message string }
		}
	}
	if err := a.get("/api/v1/nodes/"+nodeName, &node); err != nil {
		return fmt.Errorf("the node is not registered: %w", err)
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == "Ready" {
			if condition.Status == "True" {
				return nil
			}
			return fmt.Errorf("the node is not ready: %s", condition.Message)
		}
	}
	return fmt.Errorf("the node has no Ready condition yet")
}
