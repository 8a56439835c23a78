// Where a cluster's things are and what they are called: names, paths, fixed addresses and the recorded state. It owns
// the state file and the locks; what the state means for processes and the host is up.go's and down.go's.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
)

// Each cluster has a network namespace of its own, so these are the same in all of them.
const (
	nodeName    = "runledger-node"
	podCIDR     = "10.244.0.0/16"
	serviceCIDR = "10.96.0.0/16"
	apiService  = "10.96.0.1"
	dnsService  = "10.96.0.10"
	domain      = "cluster.local"

	pauseImage   = "runledger.test/pause:1"
	corednsImage = "runledger.test/coredns:1"

	stateFile = "state.json"
)

// cluster is one test cluster: its name, and the directory that holds everything it writes.
type cluster struct {
	name string
	dir  string
}

// state is what a later command needs to find, check or remove what an earlier one made.
type state struct {
	Boot     string  `json:"boot"`   // process ids mean nothing after a reboot
	Keeper   process `json:"keeper"` // supervises init from the host's namespaces
	Init     process `json:"init"`   // PID 1 of the cluster's namespaces, as seen from the host
	Veth     string  `json:"veth"`   // host end of the pair
	HostIP   string  `json:"hostIP"`
	NodeIP   string  `json:"nodeIP"`
	Cgroup   string  `json:"cgroup"` // below each hierarchy's mount point
	Egress   bool    `json:"egress"`
	Owner    int     `json:"owner"`    // the process with which it goes; 0 for none
	Bin      string  `json:"bin"`      // folder of the tools that it runs
	Rules    []rule  `json:"rules"`    // iptables rules on the host, to be removed as they were added
	Forward  string  `json:"forward"`  // the host's ip_forward before it was set, if it was
	Complete bool    `json:"complete"` // `up` saw it working
}

// lives is whether the cluster was seen working and still has its processes.
func (s *state) lives() bool {
	return s != nil && s.Complete && s.Boot == bootID() && s.Keeper.alive() && s.Init.alive()
}

func baseDir() string {
	if dir := os.Getenv("RUNLEDGER_CLUSTERS"); dir != "" {
		return dir
	}
	return "/var/lib/runledger-clusters"
}

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?$`)

// newCluster names a cluster. Without a name it is the checkout's own, so that two checkouts never meet.
func newCluster(name string) (cluster, error) {
	if name == "" {
		name = "c-" + short(sourceRoot())
	}
	if !validName.MatchString(name) {
		return cluster{}, fmt.Errorf("cluster name %q: use at most 30 lower-case letters, digits and inner dashes", name)
	}
	return cluster{name: name, dir: filepath.Join(baseDir(), name)}, nil
}

func (c cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

func (c cluster) kubeconfig() string       { return c.path("kubeconfig") }
func (c cluster) auditLog() string         { return c.path("logs", "audit.log") }
func (c cluster) containerdSocket() string { return c.path("containerd", "containerd.sock") }
func (c cluster) cgroup() string           { return "runledger-" + c.name }

// veth is a hash, as interface names hold 15 characters only.
func (c cluster) veth() string { return "rl-" + short(c.name) }

// load returns nil when there is no state, or none that can be read: then there is only debris.
func (c cluster) load() *state {
	data, err := os.ReadFile(c.path(stateFile))
	if err != nil {
		return nil
	}
	var s state
	if json.Unmarshal(data, &s) != nil {
		return nil
	}
	return &s
}

func (c cluster) save(s *state) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(c.path(stateFile), data, 0o600)
}

// lock takes the cluster for this process until the file is closed or the process ends. The lock is on the directory
// itself, so that none is left behind; nil without error means that there is no directory and none was wanted.
func (c cluster) lock(create bool) (*os.File, error) {
	defer progress("waiting for another command on cluster " + c.name)()
	for {
		if create {
			if err := os.MkdirAll(c.dir, 0o755); err != nil {
				return nil, err
			}
		}
		f, err := lockDir(c.dir)
		if errors.Is(err, os.ErrNotExist) {
			if create {
				continue
			}
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		// Whoever held the lock before may have removed the directory; then another one counts.
		held, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if now, err := os.Stat(c.dir); err == nil && os.SameFile(held, now) {
			return f, nil
		}
		f.Close()
	}
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err {
		case nil:
			return f, nil
		case syscall.EINTR:
		default:
			f.Close()
			return nil, err
		}
	}
}

// writeFile replaces a file whole or not at all.
func writeFile(path string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.WriteFile(tmp, data, mode); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func short(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:4])
}
