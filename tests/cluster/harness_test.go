// What the checks share: the built command, clusters with names of their own, kubectl, and the search for traces.
package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// binary is the command as users run it; testImage has the probe in it.
var binary, testImage string

const probeImage = "runledger.test/probe:1"

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "cluster-test-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		wd, _ := os.Getwd()
		sourceDir = wd
		binary, testImage = filepath.Join(dir, "cluster"), filepath.Join(dir, "probe.tar")
		build := func(out, pkg string) {
			cmd := exec.Command("go", "build", "-buildvcs=false", "-ldflags", "-X main.sourceDir="+wd, "-o", out, pkg)
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				panic(fmt.Sprintf("%v\n%s", err, out))
			}
		}
		build(binary, ".")
		build(filepath.Join(dir, "probe"), "./probe")
		if err := (image{ref: probeImage, files: map[string]string{"/probe": filepath.Join(dir, "probe")}}).write(testImage); err != nil {
			panic(err)
		}
		return m.Run()
	}())
}

// needCluster skips where no cluster can be made at all: what needs none is still tested there.
func needCluster(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making a cluster needs root")
	}
}

// testCluster names a cluster for one test, and fails the test if anything of it is left in the end.
func testCluster(t *testing.T, name string) cluster {
	t.Helper()
	needCluster(t)
	c, err := newCluster(fmt.Sprintf("t%d-%s", os.Getpid(), name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := clusterCommand(c, "down").CombinedOutput(); err != nil {
			t.Errorf("down: %v\n%s", err, out)
		}
		if left := traces(t, c); len(left) > 0 {
			t.Errorf("down left:\n%s", strings.Join(left, "\n"))
		}
	})
	return c
}

func clusterCommand(c cluster, command string, args ...string) *exec.Cmd {
	return exec.Command(binary, append([]string{command, "--name", c.name}, args...)...)
}

// mustUp runs up to its end and returns what it printed for shells. The tests' process owns the cluster, so that
// interrupted tests leave none behind.
func mustUp(t *testing.T, c cluster, args ...string) string {
	t.Helper()
	cmd := clusterCommand(c, "up", append([]string{"--owner-pid", fmt.Sprint(os.Getpid())}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("up: %v\n%s", err, stderr.String())
	}
	return string(out)
}

func kubectl(c cluster, stdin string, args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(c.load().Bin, "kubectl"), append([]string{"--kubeconfig", c.kubeconfig()}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func mustKubectl(t *testing.T, c cluster, stdin string, args ...string) string {
	t.Helper()
	out, err := kubectl(c, stdin, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// eventually polls, as everything in Kubernetes is true only in the end.
func eventually(t *testing.T, what string, timeout time.Duration, check func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(timeout); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// traces lists everything on the host that belongs to the cluster, found by other means than its state.
func traces(t *testing.T, c cluster) []string {
	t.Helper()
	var found []string
	if _, err := os.Lstat(c.dir); err == nil {
		found = append(found, c.dir)
	}
	if _, err := net.InterfaceByName(c.veth()); err == nil {
		found = append(found, "interface "+c.veth())
	}
	all, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		if _, err := os.Stat(filepath.Join(h.mount, c.cgroup())); err == nil {
			found = append(found, filepath.Join(h.mount, c.cgroup()))
		}
	}
	for _, table := range []string{"nat", "filter"} {
		rules, err := command("iptables", "-w", "-t", table, "-S")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(rules) {
			if strings.Contains(line, c.cgroup()) || strings.Contains(line, c.veth()) || strings.Contains(line, "KUBE-") {
				found = append(found, "iptables "+line)
			}
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, c.dir) {
			found = append(found, "mount "+line)
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range processes {
		// A zombie holds nothing, and only the host's own init can reap it.
		if pid, _ := strconv.Atoi(filepath.Base(dir)); func() bool { _, zombie, _ := readStat(pid); return zombie }() {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		cgroups, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		if strings.Contains(string(cmdline), c.name) || strings.Contains(string(cgroups), c.cgroup()) {
			found = append(found, fmt.Sprintf("process %s %q", filepath.Base(dir), cmdline))
		}
	}
	return found
}
