// What a host is refused for, and that the refusal says what to do.
package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	v1Mounts = `30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
34 23 0:28 / /elsewhere rw - cgroup cgroup rw,memory
`
	v2Mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
)

func TestHostThatCannotCarryAClusterIsToldWhatToDo(t *testing.T) {
	good := host{"linux", 0, "/var/lib", minimumDisk, minimumMemory, v1Mounts}
	if err := errors.Join(good.check(), good.checkRoom()); err != nil {
		t.Errorf("a good host: %v", err)
	}
	for sentence, change := range map[string]func(*host){
		"run it in a Linux virtual machine": func(h *host) { h.system = "darwin" },
		"run it as root (sudo -E)":          func(h *host) { h.user = 1000 },
		"10 GB on the disk of /var/lib, of which 9 GB are free: free some, or set RUNLEDGER_CLUST": func(h *host) { h.disk-- },
		"4 GB of memory, of which 3.0 GB are available: end something":                             func(h *host) { h.memory = 3 << 30 },
		"mount cgroup2 there": func(h *host) { h.mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" },
	} {
		bad := good
		change(&bad)
		if err := errors.Join(bad.check(), bad.checkRoom()); err == nil || !strings.Contains(err.Error(), sentence) {
			t.Errorf("%q: %v", sentence, err)
		}
	}
}

func TestBothVersionsOfCgroupsAreFound(t *testing.T) {
	for mounts, want := range map[string][]hierarchy{
		v1Mounts: {{"/sys/fs/cgroup/unified", true}, {"/sys/fs/cgroup/memory", false}, {"/sys/fs/cgroup/cpu", false}},
		v2Mounts: {{"/sys/fs/cgroup", true}},
	} {
		if found, err := cgroupMounts(mounts); err != nil || !slices.Equal(found, want) {
			t.Errorf("%s: %v %v", mounts, found, err)
		}
	}
}

func TestMissingProgramsAreNamedByTheirPackages(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	missing := missingPackages()
	for _, pkg := range programs {
		if !slices.Contains(missing, pkg) {
			t.Errorf("%s is not in %v", pkg, missing)
		}
	}
	// And where no apt-get is, nothing is tried.
	if err := installPackages(missing); err == nil || !strings.Contains(err.Error(), "with your system's package manager: "+strings.Join(missing, " ")) {
		t.Errorf("%v", err)
	}
}

func TestPackagesAreInstalledWithoutStartingTheirDaemons(t *testing.T) {
	dir := t.TempDir()
	policy, seen := filepath.Join(dir, "policy-rc.d"), filepath.Join(dir, "seen")
	t.Setenv("policy", policy)
	t.Setenv("no_cluster", filepath.Join(dir, "createcluster", "runledger.conf"))
	script := "#!/bin/sh\ncat '" + policy + "' >>'" + seen + "'\necho \"$@\" >>'" + seen + "'\n"
	if err := os.WriteFile(filepath.Join(dir, "apt-get"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	err := installPackages([]string{"a", "b"})
	if err != nil && !strings.Contains(err.Error(), "still missing") { // as it may be, here
		t.Error(err)
	}
	said, _ := os.ReadFile(seen)
	if lines := string(said); strings.Count(lines, "exit 101\n") != 2 || !strings.HasSuffix(lines, " install a b\n") {
		t.Errorf("apt-get saw and was asked:\n%s", lines)
	}
	if _, err := os.Stat(policy); err == nil {
		t.Error("the policy stays")
	}
}

func TestOnlyAClusterThatIsToBeMadeNeedsRoom(t *testing.T) {
	self, err := identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	there := &state{Complete: true, Boot: bootID(), Keeper: self, Init: self}
	if !there.lives() {
		t.Error("it lives, and needs no more than it has")
	}
	unfinished, ended, rebooted := *there, *there, *there
	unfinished.Complete = false
	ended.Init = process{}
	rebooted.Boot = "another"
	for _, s := range []*state{nil, &unfinished, &ended, &rebooted} {
		if s.lives() {
			t.Errorf("%+v does not live", s)
		}
	}
}

func TestDiskIsThatOfTheFolderToBe(t *testing.T) {
	there := t.TempDir()
	if found := nearestExisting(filepath.Join(there, "not", "yet")); found != there {
		t.Errorf("%s", found)
	}
	if freeDisk(there) == 0 || availableMemory() == 0 {
		t.Error("nothing is free")
	}
	if _, err := os.Stat(mountsFile); err != nil {
		t.Error(err)
	}
}
