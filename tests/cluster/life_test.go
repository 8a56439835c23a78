// The life of a cluster as the host sees it: made twice, killed at any point, taken down, beside another. What pods
// find inside is pods_test.go's.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestUpAfterUpChangesNothingAndPrintsTheSame(t *testing.T) {
	c := testCluster(t, "twice")
	settings := kernelSettings(t)
	first := mustUp(t, c)
	before := c.load()
	start := time.Now()
	if second := mustUp(t, c); second != first {
		t.Errorf("first:\n%s\nsecond:\n%s", first, second)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the second up took %s", took)
	}
	if after := c.load(); after.Init != before.Init {
		t.Errorf("the second up started init again")
	}
	if now := kernelSettings(t); now != settings {
		t.Errorf("the host's kernel settings were\n%sand are\n%s", settings, now)
	}
}

// kernelSettings are those of the whole machine that the kubelet and kube-proxy change where they can.
func kernelSettings(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, name := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
		"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes", "net/netfilter/nf_conntrack_max", "net/ipv4/ip_forward"} {
		value, _ := os.ReadFile("/proc/sys/" + name) // some kernels lack some
		fmt.Fprintf(&all, "%s %s\n", name, strings.TrimSpace(string(value)))
	}
	return all.String()
}

func TestTwoUpsAtOnceMakeOneCluster(t *testing.T) {
	c := testCluster(t, "race")
	results := make(chan string, 2)
	for range 2 {
		go func() {
			out, err := clusterCommand(c, "up", "--owner-pid", fmt.Sprint(os.Getpid())).Output()
			results <- fmt.Sprint(string(out), err)
		}()
	}
	if a, b := <-results, <-results; a != b || !strings.Contains(a, "KUBECONFIG") {
		t.Errorf("one:\n%s\nother:\n%s", a, b)
	}
}

// Both effects of one cluster's death are checked beside another cluster, which must not notice.
func TestClusterWhoseInitWasKilledIsMadeAnewBesideAnother(t *testing.T) {
	bystander := testCluster(t, "bystander")
	victim := testCluster(t, "victim")
	mustUp(t, bystander)
	mustUp(t, victim)
	before := victim.load()
	before.Init.kill()
	if !before.Init.gone(10*time.Second) || !before.Keeper.gone(10*time.Second) {
		t.Fatal("the keeper outlived init")
	}
	mustUp(t, victim)
	if after := victim.load(); after.Init == before.Init {
		t.Error("the dead cluster was taken for a living one")
	}
	if out := mustKubectl(t, bystander, "", "get", "nodes"); !strings.Contains(out, " Ready ") {
		t.Errorf("the other cluster: %s", out)
	}
	// A killed keeper takes init with it, and down finds the rest.
	keeper := victim.load()
	keeper.Keeper.kill()
	if !keeper.Init.gone(10 * time.Second) {
		t.Error("init outlived its keeper")
	}
}

func TestUpThatIsKilledLeavesNothing(t *testing.T) {
	c := testCluster(t, "killed")
	for _, point := range []struct {
		name    string
		reached func() bool
	}{
		{"keys are being written", func() bool { return c.load() != nil }},
		{"init has started", func() bool { s := c.load(); return s != nil && s.Init.PID > 0 }},
		{"the API server runs", func() bool { _, err := os.Stat(c.auditLog()); return err == nil }},
	} {
		cmd := clusterCommand(c, "up")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(2 * time.Minute); !point.reached() && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if point.name == "keys are being written" {
			continue // no keeper yet, who could clean? the next round's up has to
		}
		eventually(t, "killed when "+point.name, 30*time.Second, func() error {
			if left := traces(t, c); len(left) > 0 {
				return fmt.Errorf("left:\n%s", strings.Join(left, "\n"))
			}
			return nil
		})
	}
	// With the keeper killed too, nobody is left to clean: up starts over.
	cmd := clusterCommand(c, "up")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "init", time.Minute, func() error {
		if s := c.load(); s == nil || s.Init.PID == 0 {
			return fmt.Errorf("not started")
		}
		return nil
	})
	_ = cmd.Process.Signal(syscall.SIGSTOP)
	c.load().Keeper.kill()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	mustUp(t, c)
	// And a down that is killed in the middle is finished by the next, which is the test's last step.
	before := c.load()
	cmd = clusterCommand(c, "down")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); before.Keeper.alive() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if before.Keeper.alive() {
		t.Error("it had not begun")
	}
	t.Logf("killed in the middle, it left:\n%s", strings.Join(traces(t, c), "\n"))
}

func TestClusterGoesWithItsOwnerAndEgressWithIt(t *testing.T) {
	c := testCluster(t, "owned")
	forward, err := os.ReadFile(forwardFile)
	if err != nil {
		t.Fatal(err)
	}
	owner := exec.Command("sleep", "1000")
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	defer owner.Process.Kill()
	if out, err := clusterCommand(c, "up", "--owner-pid", fmt.Sprint(owner.Process.Pid), "--egress").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	rules, err := command("iptables", "-w", "-t", "nat", "-S")
	if err != nil || !strings.Contains(rules, c.cgroup()) {
		t.Errorf("no rule for egress: %v\n%s", err, rules)
	}
	_ = owner.Process.Kill()
	_ = owner.Wait()
	eventually(t, "the owner died", 30*time.Second, func() error {
		if left := traces(t, c); len(left) > 0 {
			return fmt.Errorf("left:\n%s", strings.Join(left, "\n"))
		}
		return nil
	})
	if after, _ := os.ReadFile(forwardFile); string(after) != string(forward) {
		t.Errorf("ip_forward was %q and is %q", forward, after)
	}
}

func TestDownWithoutClusterSucceeds(t *testing.T) {
	c := testCluster(t, "none")
	if out, err := clusterCommand(c, "down").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
