// Making a cluster: from whatever is there to one that tests can use, or a report of what went wrong. It owns the
// order of steps and the waiting; each step's how is in the file named after it.
package main

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const upDeadline = 3 * time.Minute

//go:embed manifests.yaml
var manifests string

type upOptions struct {
	ownerPID int
	egress   bool
}

func up(c cluster, o upOptions) error {
	if err := checkHost(!c.load().lives()); err != nil {
		return err
	}
	missing := missingPackages()
	if s := c.load(); s == nil || !s.Complete {
		announce(c, o, missing)
	}
	if err := installPackages(missing); err != nil {
		return err
	}
	bin, err := buildTools()
	if err != nil {
		return err
	}
	lock, err := c.lock(true)
	if err != nil {
		return err
	}
	defer lock.Close()

	if s := c.load(); s.lives() {
		if s.Egress != o.egress {
			return fmt.Errorf("cluster %s is up with egress %t: take it down first", c.name, s.Egress)
		}
		if err := await(c, s, 30*time.Second); err == nil {
			if s.Bin != bin {
				say("cluster %s was made with other versions of its tools; down and up renews it", c.name)
			}
			if s.Owner != o.ownerPID {
				say("cluster %s was made to go with process %d (0: with none), and still will", c.name, s.Owner)
			}
			printEnv(c, s)
			return nil
		}
		say("cluster %s is up but does not get healthy: starting over", c.name)
	}
	if entries, _ := os.ReadDir(c.dir); len(entries) > 0 {
		say("removing what an earlier attempt left of cluster %s", c.name)
	}
	if err := clean(c); err != nil {
		return err
	}
	// Of a cluster that was up, it was not asked before: its room was its own.
	if err := checkHost(true); err != nil {
		return err
	}
	if err := create(c, o, bin); err != nil {
		report(c)
		return errors.Join(err, destroy(c))
	}
	return nil
}

// create fills an empty, locked directory.
func create(c cluster, o upOptions, bin string) error {
	s, err := plan(c, o, bin)
	if err != nil {
		return err
	}
	say("making cluster %s: node %s, host %s", c.name, s.NodeIP, s.HostIP)
	if err := errors.Join(writeKeys(c, s), writeConfig(c, s)); err != nil {
		return err
	}
	keeper, err := startKeeper(c, o.ownerPID)
	if err != nil {
		return err
	}
	// When this closes without the state being complete, as when this process is killed, the keeper takes all down.
	// After a mere failure it finds the lock held until the caller has done so.
	defer keeper.Close()
	if s, err = awaitInit(c); err != nil {
		return err
	}
	if err := populate(c, s); err != nil {
		return err
	}
	s.Complete = true
	if err := c.save(s); err != nil {
		return err
	}
	say("cluster %s is ready", c.name)
	printEnv(c, s)
	return nil
}

// plan chooses addresses and records all that will be done to the host before any of it is.
func plan(c cluster, o upOptions, bin string) (*state, error) {
	base, err := lockDir(baseDir())
	if err != nil {
		return nil, err
	}
	defer base.Close()
	s := &state{Boot: bootID(), Veth: c.veth(), Cgroup: c.cgroup(), Egress: o.egress, Owner: o.ownerPID, Bin: bin}
	if s.HostIP, s.NodeIP, err = chooseAddresses(c); err != nil {
		return nil, err
	}
	if o.egress {
		s.Rules = egressRules(c, s)
		if s.Forward, err = forwardBefore(c); err != nil {
			return nil, err
		}
	}
	return s, c.save(s)
}

// awaitInit returns the state once the keeper has recorded init in it.
func awaitInit(c cluster) (*state, error) {
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if s := c.load(); s != nil && s.Init.PID > 0 {
			return s, nil
		}
	}
	return nil, errors.New("the keeper did not start the cluster's namespaces")
}

// populate brings images and objects into the running cluster and waits for both to work.
func populate(c cluster, s *state) error {
	a, err := newAPI(c, s)
	if err != nil {
		return err
	}
	images := c.path("images")
	if err := os.MkdirAll(images, 0o755); err != nil {
		return err
	}
	for _, i := range []image{
		{ref: pauseImage, files: map[string]string{"/pause": filepath.Join(s.Bin, "pause")}, entrypoint: []string{"/pause"}, user: "65535:65535"},
		{ref: corednsImage, files: map[string]string{"/coredns": filepath.Join(s.Bin, "coredns")}, entrypoint: []string{"/coredns"}},
	} {
		file := filepath.Join(images, filepath.Base(i.entrypoint[0])+".tar")
		if err := i.write(file); err != nil {
			return err
		}
		if err := waitFor(c, s, "containerd", time.Minute, func() error { _, err := os.Stat(c.containerdSocket()); return err }); err != nil {
			return err
		}
		if err := loadImage(c, s, file); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(images); err != nil {
		return err
	}
	if err := waitFor(c, s, "the API server", upDeadline, func() error { return a.get("/readyz", nil) }); err != nil {
		return err
	}
	forward := ""
	if s.Egress {
		forward = "forward . /etc/resolv.conf"
	}
	if err := a.apply(strings.NewReplacer("DOMAIN", domain, "DNS_SERVICE", dnsService, "COREDNS_IMAGE", corednsImage,
		"FORWARD", forward).Replace(manifests)); err != nil {
		return err
	}
	return await(c, s, upDeadline)
}

// await waits until tests can begin.
func await(c cluster, s *state, timeout time.Duration) error {
	a, err := newAPI(c, s)
	if err != nil {
		return err
	}
	return waitFor(c, s, "the cluster", timeout, a.ready)
}

// waitFor polls, says every ten seconds what is still missing, and gives up at once when the cluster has died.
func waitFor(c cluster, s *state, what string, timeout time.Duration, ready func() error) error {
	end, next := time.Now().Add(timeout), time.Now().Add(10*time.Second)
	for {
		err := ready()
		if err == nil {
			return nil
		}
		if !s.Init.alive() || !s.Keeper.alive() {
			return fmt.Errorf("waiting for %s: the cluster's init process has died", what)
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is not ready after %s: %w", what, timeout, err)
		}
		if time.Now().After(next) {
			say("waiting for %s: %v", what, err)
			next = time.Now().Add(10 * time.Second)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// loadImage imports through a pipe, as the cluster sees not all of the host's files.
func loadImage(c cluster, s *state, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := inside(s, "ctr", "--address", c.containerdSocket(), "--namespace", "k8s.io", "images", "import",
		"--snapshotter", usedSnapshotter(c), "-")
	cmd.Stdin = f
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("importing %s: %w\n%s", file, err, out)
	}
	return nil
}

// inside runs a command in all namespaces of the cluster.
func inside(s *state, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--target", fmt.Sprint(s.Init.PID),
		"--mount", "--uts", "--ipc", "--net", "--pid", "--"}, args...)...)
}

// report prints the end of each log, which is gone once the cluster is.
func report(c cluster) {
	logs, _ := filepath.Glob(c.path("logs", "*.log"))
	for _, file := range logs {
		if file == c.auditLog() {
			continue
		}
		if data, err := os.ReadFile(file); err == nil {
			fmt.Fprintf(os.Stderr, "---- %s\n%s\n", file, lastLines(string(data), 12))
		}
	}
}

// usedSnapshotter reads back what the configuration says, as a test of the disk may not run twice alike.
func usedSnapshotter(c cluster) string {
	config, _ := os.ReadFile(c.path("config", "containerd.toml"))
	if strings.Contains(string(config), `snapshotter = "native"`) {
		return "native"
	}
	return "overlayfs"
}
