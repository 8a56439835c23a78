// Checks that need no cluster: the tools' cache, process identity, addresses and names.
package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestHalfWrittenToolIsBuiltAgain(t *testing.T) {
	t.Setenv("RUNLEDGER_CACHE", t.TempDir())
	bin, err := buildTools("pause")
	if err != nil {
		t.Fatal(err)
	}
	tool, err := filepath.EvalSymlinks(filepath.Join(bin, "pause"))
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.Stat(tool)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(tool, 0); err != nil {
		t.Fatal(err)
	}
	abandoned := filepath.Join(cacheDir(), "pause", ".new-killed")
	if err := os.Mkdir(abandoned, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := buildTools("pause"); err != nil {
		t.Fatal(err)
	}
	if again, err := os.Stat(tool); err != nil || again.Size() != whole.Size() {
		t.Errorf("%v, %v", again, err)
	}
	if _, err := os.Stat(abandoned); err == nil {
		t.Error("what a killed build left is still there")
	}
}

func TestBuildsAtOnceShareOneEntry(t *testing.T) {
	t.Setenv("RUNLEDGER_CACHE", t.TempDir())
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if _, err := buildTools("pause"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	entries, _ := os.ReadDir(filepath.Join(cacheDir(), "pause"))
	if len(entries) != 1 {
		t.Errorf("%v", entries)
	}
}

func TestKeyFollowsTheSources(t *testing.T) {
	defer func(dir string) { sourceDir = dir }(sourceDir)
	sourceDir = t.TempDir()
	b := build{name: "x", module: "x", packages: []string{"."}}
	write := func(content string) string {
		if err := writeFile(filepath.Join(sourceDir, "x", "go.sum"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		key, err := b.key()
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	if one, two, again := write("1"), write("2"), write("1"); one == two || one != again {
		t.Errorf("%s %s %s", one, two, again)
	}
}

func TestUnknownToolIsRefused(t *testing.T) {
	if _, err := buildTools("kubectl2"); err == nil {
		t.Error("accepted")
	}
}

func TestProcessIsNotTakenForAnotherWithItsPid(t *testing.T) {
	sleep := exec.Command("sleep", "100")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer sleep.Wait()
	p, err := identify(sleep.Process.Pid)
	if err != nil || !p.alive() {
		t.Fatalf("%v %v", p, err)
	}
	other := process{PID: p.PID, Start: p.Start + 1}
	other.kill()
	if other.alive() || !p.alive() {
		t.Error("killed by its pid alone")
	}
	p.kill()
	if !p.gone(5e9) {
		t.Error("does not count as gone while nobody has reaped it")
	}
}

func TestAddressesAvoidWhatTheHostRoutes(t *testing.T) {
	needCluster(t)
	t.Setenv("RUNLEDGER_CLUSTERS", t.TempDir())
	c, _ := newCluster("addresses")
	host, _, err := chooseAddresses(c)
	if err != nil {
		t.Fatal(err)
	}
	// Another cluster was promised the same place, but has not made its interface yet.
	other, _ := newCluster("other")
	if err := other.save(&state{HostIP: host}); err != nil {
		t.Fatal(err)
	}
	if second, _, err := chooseAddresses(c); err != nil || second == host {
		t.Errorf("%s again: %v", second, err)
	}
}

func TestNamesAreFitForFilesAndCgroups(t *testing.T) {
	for name, good := range map[string]bool{
		"a": true, "ci-7": true, strings.Repeat("x", 30): true,
		strings.Repeat("x", 31): false, "-a": false, "A": false, "a/b": false, "..": false,
	} {
		if _, err := newCluster(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestKubernetesVersionIsTheModules(t *testing.T) {
	flags, err := kubeVersion(sourceRoot())
	if err != nil || !strings.Contains(flags, "gitVersion=v1.") {
		t.Errorf("%q %v", flags, err)
	}
}
