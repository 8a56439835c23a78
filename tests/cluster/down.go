// Taking a cluster away: its processes, cgroups, interface, iptables rules and directory, in whatever state a killed
// `up` or keeper left them. Everything here may be done twice.
package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func down(c cluster) error {
	lock, err := c.lock(false)
	if err != nil {
		return err
	}
	if lock == nil {
		say("there is no cluster %s", c.name)
		return nil
	}
	defer lock.Close()
	if err := destroy(c); err != nil {
		return err
	}
	say("cluster %s is gone", c.name)
	return nil
}

// destroy expects the cluster to be locked.
func destroy(c cluster) error {
	if err := clean(c); err != nil {
		return err
	}
	if err := syscall.Rmdir(c.dir); err != nil {
		return fmt.Errorf("removing %s: %w", c.dir, err)
	}
	_ = syscall.Rmdir(baseDir()) // unless other clusters are there
	return nil
}

// clean leaves nothing but the locked, empty directory. It goes on after an error, as the rest may well work, and the
// files go last: while something is left, the state that names it is too.
func clean(c cluster) error {
	s := c.load()
	if s == nil {
		// The names are the same for every life of a cluster, so debris can be found without a state.
		s = &state{Boot: bootID(), Veth: c.veth(), Cgroup: c.cgroup()}
	}
	var errs []error
	if s.Boot == bootID() {
		for _, p := range []process{s.Keeper, s.Init} {
			if p.PID == os.Getpid() {
				continue
			}
			p.kill()
			if !p.gone(20 * time.Second) {
				errs = append(errs, fmt.Errorf("process %d does not end", p.PID))
			}
		}
		errs = append(errs, removeCgroup(s.Cgroup), disconnect(c, s))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return removeFiles(c)
}

func removeFiles(c cluster) error {
	// The mounts were in the cluster's own namespace. Any that are here were made by hand, and deleting through them
	// would delete what they show.
	mounts, err := mountsBelow(c.dir)
	if err != nil {
		return err
	}
	for _, mount := range slices.Backward(mounts) {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmounting %s: %w", mount, err)
		}
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() == stateFile {
			continue
		}
		if err := os.RemoveAll(c.path(entry.Name())); err != nil {
			return err
		}
	}
	return os.RemoveAll(c.path(stateFile))
}

func mountsBelow(dir string) ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var mounts []string
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			mounts = append(mounts, fields[4])
		}
	}
	return mounts, nil
}
