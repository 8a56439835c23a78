// The cluster's keys: one authority, a certificate for each component, and the kubeconfig files made of them. What
// each identity may do is Kubernetes' own RBAC.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"
)

type authority struct {
	c    cluster
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// writeKeys makes every key and kubeconfig of a new cluster.
func writeKeys(c cluster, s *state) error {
	a, err := newAuthority(c)
	if err != nil {
		return err
	}
	node := net.ParseIP(s.NodeIP)
	if err := a.serving("kube-apiserver", []net.IP{node, net.ParseIP("127.0.0.1"), net.ParseIP(apiService)},
		"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc."+domain); err != nil {
		return err
	}
	if err := a.serving("kubelet", []net.IP{node}, nodeName); err != nil {
		return err
	}
	if _, _, err := a.client("apiserver-to-kubelet", "kube-apiserver-kubelet-client", "system:masters"); err != nil {
		return err
	}
	if err := a.serviceAccountKey(); err != nil {
		return err
	}
	inside := "https://127.0.0.1:6443"
	for _, u := range []struct{ file, user, group, server string }{
		{c.kubeconfig(), "admin", "system:masters", "https://" + net.JoinHostPort(s.NodeIP, "6443")},
		{c.path("config", "controller-manager.kubeconfig"), "system:kube-controller-manager", "", inside},
		{c.path("config", "scheduler.kubeconfig"), "system:kube-scheduler", "", inside},
		{c.path("config", "proxy.kubeconfig"), "system:kube-proxy", "", inside},
		{c.path("config", "kubelet.kubeconfig"), "system:node:" + nodeName, "system:nodes", inside},
		{c.path("config", "provisioner.kubeconfig"), "runledger-test-provisioner", "", inside},
		{c.path("config", "netpol.kubeconfig"), "runledger-test-netpol", "", inside},
	} {
		if err := a.kubeconfig(u.file, u.user, u.group, u.server); err != nil {
			return err
		}
	}
	return nil
}

func newAuthority(c cluster) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := template("runledger test cluster " + c.name)
	t.IsCA, t.BasicConstraintsValid = true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a := &authority{c: c, cert: cert, key: key, pem: encode("CERTIFICATE", der)}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return a, a.write("ca", a.pem, keyPEM)
}

func template(name string, groups ...string) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name, Organization: groups},
		NotBefore:    time.Now().Add(-time.Hour), // clocks get corrected backwards
		NotAfter:     time.Now().AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
}

func (a *authority) issue(t *x509.Certificate) (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, &k.PublicKey, a.key)
	if err != nil {
		return nil, nil, err
	}
	key, err = encodeKey(k)
	return encode("CERTIFICATE", der), key, err
}

func (a *authority) serving(file string, ips []net.IP, names ...string) error {
	t := template(file)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	t.IPAddresses, t.DNSNames = ips, names
	cert, key, err := a.issue(t)
	if err != nil {
		return err
	}
	return a.write(file, cert, key)
}

// client issues a certificate for a user, and writes it down when it is given a file.
func (a *authority) client(file, user, group string) (cert, key []byte, err error) {
	var groups []string
	if group != "" {
		groups = []string{group}
	}
	t := template(user, groups...)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	cert, key, err = a.issue(t)
	if err != nil || file == "" {
		return cert, key, err
	}
	return cert, key, a.write(file, cert, key)
}

func (a *authority) serviceAccountKey() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	private, err := encodeKey(key)
	if err != nil {
		return err
	}
	if err := writeFile(a.c.path("pki", "service-account.pub"), encode("PUBLIC KEY", public), 0o644); err != nil {
		return err
	}
	return writeFile(a.c.path("pki", "service-account.key"), private, 0o600)
}

func (a *authority) kubeconfig(file, user, group, server string) error {
	cert, key, err := a.client("", user, group)
	if err != nil {
		return err
	}
	b64 := base64.StdEncoding.EncodeToString
	return writeFile(file, fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: %[1]s
contexts:
- name: %[1]s
  context: {cluster: %[1]s, user: %[2]q}
clusters:
- name: %[1]s
  cluster:
    server: %[3]s
    certificate-authority-data: %[4]s
users:
- name: %[2]q
  user:
    client-certificate-data: %[5]s
    client-key-data: %[6]s
`, a.c.cgroup(), user, server, b64(a.pem), b64(cert), b64(key)), 0o600)
}

func (a *authority) write(name string, cert, key []byte) error {
	if err := writeFile(a.c.path("pki", name+".crt"), cert, 0o644); err != nil {
		return err
	}
	return writeFile(a.c.path("pki", name+".key"), key, 0o600)
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	return encode("EC PRIVATE KEY", der), err
}
