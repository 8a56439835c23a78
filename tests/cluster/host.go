// What the host must have before a cluster is made: rights, room, programs. It owns each refusal's sentence and the
// installation of Debian packages; it changes nothing else.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	minimumDisk   = 10 << 30
	minimumMemory = 4 << 30
)

// programs maps what is needed to the Debian package that has it.
var programs = map[string]string{
	"containerd": "containerd", "containerd-shim-runc-v2": "containerd", "ctr": "containerd",
	"runc": "runc", "iptables": "iptables", "conntrack": "conntrack", "ip": "iproute2",
	"nsenter": "util-linux", "mount": "mount",
}

// host is what of a machine decides whether it can carry a cluster.
type host struct {
	system       string
	user         int
	base         string
	disk, memory uint64 // free
	mounts       string // its mountinfo
}

// checkHost refuses what can't work, with a sentence that says what to do. Room is needed by what is to be made, not
// by a cluster that has taken it already.
func checkHost(room bool) error {
	base := nearestExisting(baseDir())
	mounts, _ := os.ReadFile(mountsFile)
	h := host{runtime.GOOS, os.Geteuid(), base, freeDisk(base), availableMemory(), string(mounts)}
	if err := h.check(); err != nil || !room {
		return err
	}
	return h.checkRoom()
}

func (h host) check() error {
	if h.system != "linux" {
		return errors.New("the test cluster needs Linux's namespaces: run it in a Linux virtual machine")
	}
	if h.user != 0 {
		return errors.New("the test cluster makes namespaces, cgroups and network interfaces: run it as root (sudo -E)")
	}
	_, err := cgroupMounts(h.mounts)
	return err
}

func (h host) checkRoom() error {
	if h.disk < minimumDisk {
		return fmt.Errorf("the cluster needs %d GB on the disk of %s, of which %d GB are free: free some, or set RUNLEDGER_CLUSTERS to another disk", minimumDisk>>30, h.base, h.disk>>30)
	}
	if h.memory < minimumMemory {
		return fmt.Errorf("the cluster needs %d GB of memory, of which %.1f GB are available: end something, or use a larger machine", minimumMemory>>30, float64(h.memory)/(1<<30))
	}
	return nil
}

// missingPackages lists the Debian packages of the programs that are not there.
func missingPackages() []string {
	var missing []string
	for program, pkg := range programs {
		if _, err := exec.LookPath(program); err != nil && !slices.Contains(missing, pkg) {
			missing = append(missing, pkg)
		}
	}
	if _, err := cniPlugins(); err != nil {
		missing = append(missing, "containernetworking-plugins")
	}
	slices.Sort(missing)
	return missing
}

// install keeps what comes with a package from starting as a service: the cluster runs a containerd of its own.
const install = `set -e
. "$0/lib.sh"
. "$0/daemons.sh"
loud_daemons >&2
quiet_daemons >&2
export DEBIAN_FRONTEND=noninteractive
apt-get -o DPkg::Lock::Timeout=300 -q update 2>&1 || true # an old list may be good enough
apt-get -o DPkg::Lock::Timeout=300 -qy --no-install-recommends install "$@" 2>&1`

// installPackages never touches a package whose program is there, so a containerd or Docker that runs is left alone.
func installPackages(missing []string) error {
	if len(missing) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("install what these Debian packages have with your system's package manager: %s", strings.Join(missing, " "))
	}
	done := progress("installing " + strings.Join(missing, " "))
	defer done()
	var log strings.Builder
	cmd := exec.Command("bash", append([]string{"-c", install, filepath.Dir(sourceDir)}, missing...)...)
	cmd.Stdout, cmd.Stderr = &log, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("apt-get install %s: %w\n%s", strings.Join(missing, " "), err, lastLines(log.String(), 15))
	}
	if still := missingPackages(); len(still) > 0 {
		return fmt.Errorf("still missing after apt-get install: %s", strings.Join(still, " "))
	}
	return nil
}

// cniPlugins finds the folder of the CNI plugins: Debian's, or the one that upstream uses.
func cniPlugins() (string, error) {
	for _, dir := range []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"} {
		if _, err := os.Stat(filepath.Join(dir, "ptp")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("no CNI plugins in /usr/lib/cni or /opt/cni/bin: install containernetworking-plugins")
}

// snapshotter is overlayfs where the disk can carry it, which another overlayfs can't; else whole copies.
func snapshotter(c cluster) string {
	dir, err := os.MkdirTemp(c.dir, "overlay-")
	if err != nil {
		return "native"
	}
	defer os.RemoveAll(dir)
	for _, sub := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return "native"
		}
	}
	merged := filepath.Join(dir, "merged")
	options := fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", dir, dir, dir)
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return "native"
	}
	_ = unix.Unmount(merged, unix.MNT_DETACH)
	return "overlayfs"
}

func freeDisk(dir string) uint64 {
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil {
		return 0
	}
	return fs.Bavail * uint64(fs.Bsize)
}

func nearestExisting(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

func availableMemory() uint64 {
	data, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemAvailable:" {
			kb, _ := strconv.ParseUint(f[1], 10, 64)
			return kb << 10
		}
	}
	return 0
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
