// The cluster's cgroup: one directory of the same name in every hierarchy (one hierarchy on cgroup v2, one for each
// controller on v1). The kubelet's pods and everything that the cluster runs are below it. It owns making and removing
// these directories; limits are the kubelet's.
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type hierarchy struct {
	mount string
	v2    bool
}

const mountsFile = "/proc/self/mountinfo"

// hierarchies lists this machine's cgroup mounts.
func hierarchies() ([]hierarchy, error) {
	data, err := os.ReadFile(mountsFile)
	if err != nil {
		return nil, err
	}
	return cgroupMounts(string(data))
}

// cgroupMounts lists those of a mountinfo.
func cgroupMounts(mountinfo string) ([]hierarchy, error) {
	var found []hierarchy
	seen := map[string]bool{}
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		if !ok {
			continue
		}
		kind := strings.Fields(after)[0]
		mount := strings.Fields(before)[4]
		if (kind == "cgroup" || kind == "cgroup2") && strings.HasPrefix(mount, "/sys/fs/cgroup") && !seen[mount] {
			seen[mount] = true
			found = append(found, hierarchy{mount, kind == "cgroup2"})
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no cgroup hierarchy is mounted below /sys/fs/cgroup: mount cgroup2 there")
	}
	return found, nil
}

// makeCgroup makes the cluster's directory in each hierarchy and puts pid into a leaf below it. It is a leaf because
// v2 keeps processes out of groups that pass their controllers on.
func makeCgroup(name string, pid int) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		top := filepath.Join(h.mount, name)
		leaf := filepath.Join(top, "init")
		if err := os.MkdirAll(leaf, 0o755); err != nil {
			return err
		}
		if h.v2 {
			if err := delegate(h.mount); err != nil {
				return err
			}
			if err := delegate(top); err != nil {
				return err
			}
		} else if err := inheritCpuset(h.mount, top, leaf); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("joining cgroup %s: %w", leaf, err)
		}
	}
	return nil
}

// delegate passes a v2 group's controllers on to its children, as far as the kubelet wants them and they are not.
func delegate(dir string) error {
	available, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	passed, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	for _, controller := range []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids"} {
		if !slices.Contains(strings.Fields(string(available)), controller) || slices.Contains(strings.Fields(string(passed)), controller) {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
			return fmt.Errorf("cgroup controller %s can't be passed on from %s (inside a container, give it a cgroup namespace of its own): %w", controller, dir, err)
		}
	}
	return nil
}

// inheritCpuset copies the parent's processors and memory nodes, without which a v1 cpuset takes no process.
func inheritCpuset(parent string, children ...string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil {
			return nil // another controller's hierarchy
		}
		for _, dir := range children {
			if err := os.WriteFile(filepath.Join(dir, file), bytes.TrimSpace(value), 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeCgroup kills what still runs in the cluster's cgroup and removes its directories.
func removeCgroup(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	var last error
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		last = nil
		for _, h := range all {
			if err := removeTree(filepath.Join(h.mount, name)); err != nil {
				last = err
			}
		}
		if last == nil {
			return nil
		}
	}
	return fmt.Errorf("removing cgroup %s: %w", name, last)
}

func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	for _, field := range strings.Fields(string(procs)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 1 && pid != os.Getpid() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	// The control files go with the directory: only rmdir works here.
	if err := syscall.Rmdir(dir); err != nil && err != syscall.ENOENT {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}
