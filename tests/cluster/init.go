// Init: PID 1 of a cluster's namespaces. It makes the mounts and the network that the components see, starts them,
// starts again those that end, and reaps orphans. It knows nothing of the host: that is the keeper's.
package main

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func initMain(c cluster) error {
	if os.Getpid() != 1 {
		return fmt.Errorf("init is started by the keeper, as PID 1 of the cluster's namespaces")
	}
	// The keeper writes one byte when cgroup and network are there; if it dies instead, so does this process.
	if n, _ := os.NewFile(3, "keeper").Read(make([]byte, 1)); n != 1 {
		return fmt.Errorf("the keeper gave up")
	}
	s := c.load()
	if s == nil {
		return fmt.Errorf("%s has no state", c.dir)
	}
	if err := makeMounts(c, s); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(nodeName)); err != nil {
		return err
	}
	r := &reaper{waiting: map[int]chan syscall.WaitStatus{}}
	go r.run()
	if err := makeNetwork(r, s); err != nil {
		return err
	}
	for _, part := range storage(c, s) {
		go r.supervise(c, part)
	}
	awaitAPI()
	for _, part := range rest(c, s) {
		go r.supervise(c, part)
	}
	select {}
}

// makeMounts separates this mount namespace from the host's and hides the host's directories that components write to
// without being asked, with the cluster's own directory and the tools still in view.
func makeMounts(c cluster, s *state) error {
	m := &mounter{}
	m.mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	m.mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	resolv, _ := os.ReadFile(c.path("config", "resolv.conf"))
	tools, err := filepath.EvalSymlinks(filepath.Join(s.Bin, "kube"))
	if err != nil {
		return err
	}
	keep := map[string]*os.File{}
	for _, dir := range []string{c.dir, s.Bin, filepath.Dir(tools)} {
		f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		keep[dir] = f
	}
	for _, dir := range []string{"/run", "/var/lib", "/var/log"} {
		m.mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755")
		for path, f := range keep {
			if strings.HasPrefix(path, dir+"/") {
				m.do(os.MkdirAll(path, 0o755))
				m.mount(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), path, "", unix.MS_BIND, "")
			}
		}
	}
	m.do(os.MkdirAll("/run/lock", 0o755))
	// On many hosts this file is a link below /run, which is now empty. Without egress, nobody is to be asked.
	hosts := c.path("config", "resolv.conf.node")
	m.do(os.WriteFile(hosts, resolv, 0o644))
	if target, err := filepath.EvalSymlinks("/etc/resolv.conf"); err == nil {
		m.mount(hosts, target, "", unix.MS_BIND, "")
	}
	// The kubelet sets these for the whole machine unless it finds them set. It finds them set.
	for path, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		fake := c.path("config", "sysctl", strings.ReplaceAll(path, "/", "."))
		m.do(writeFile(fake, []byte(value+"\n"), 0o644))
		if _, err := os.Stat("/proc/sys/" + path); err == nil {
			m.mount(fake, "/proc/sys/"+path, "", unix.MS_BIND, "")
		}
	}
	// Volumes that are mounted after a container's start have to reach it.
	m.mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
	return m.err
}

// mounter keeps the first error, so that a list of mounts reads as one.
type mounter struct{ err error }

func (m *mounter) do(err error) {
	if m.err == nil {
		m.err = err
	}
}

func (m *mounter) mount(source, target, kind string, flags uintptr, data string) {
	if m.err == nil {
		if err := unix.Mount(source, target, kind, flags, data); err != nil {
			m.err = fmt.Errorf("mounting %s: %w", target, err)
		}
	}
}

func makeNetwork(r *reaper, s *state) error {
	steps := [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"ip", "addr", "add", s.NodeIP + "/30", "dev", "eth0"},
		{"ip", "link", "set", "eth0", "up"},
		// What pods send outwards carries the node's address: the host knows no other.
		{"iptables", "-w", "-t", "nat", "-A", "POSTROUTING", "-s", podCIDR, "!", "-d", podCIDR, "-o", "eth0", "-j", "MASQUERADE"},
	}
	steps = append(steps, []string{"ip", "route", "add", "default", "via", s.HostIP})
	if !s.Egress {
		steps = append(steps, noEgress(s)...)
	}
	if err := os.WriteFile(forwardFile, []byte("1"), 0); err != nil {
		return err
	}
	for _, step := range steps {
		pid, done, err := r.start(step, os.Stderr)
		if err != nil {
			return err
		}
		if status := <-done; status.ExitStatus() != 0 {
			return fmt.Errorf("%s (pid %d): exit %d", strings.Join(step, " "), pid, status.ExitStatus())
		}
	}
	return nil
}

// noEgress refuses what would leave the cluster at once, where merely routing it nowhere would cost time-outs.
// Addresses are named instead of the interface, as a service's address is replaced after the route was chosen.
func noEgress(s *state) [][]string {
	rules := [][]string{{"-N", "NO-EGRESS"}}
	for _, near := range []string{"127.0.0.0/8", s.HostIP + "/30", podCIDR, serviceCIDR} {
		rules = append(rules, []string{"-A", "NO-EGRESS", "-d", near, "-j", "RETURN"})
	}
	rules = append(rules,
		[]string{"-A", "NO-EGRESS", "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"},
		[]string{"-A", "NO-EGRESS", "-j", "REJECT"},
		[]string{"-A", "FORWARD", "-j", "NO-EGRESS"},
		[]string{"-A", "OUTPUT", "-j", "NO-EGRESS"})
	for n, rule := range rules {
		rules[n] = append([]string{"iptables", "-w"}, rule...)
	}
	return rules
}

// awaitAPI waits without a deadline: `up` has one, and says what it sees.
func awaitAPI() {
	// Only liveness is asked for, on the loopback, before any certificate matters.
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	for ; ; time.Sleep(100 * time.Millisecond) {
		if resp, err := client.Get("https://127.0.0.1:6443/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
	}
}

// reaper waits for all children, as PID 1 gets orphans too and os/exec would wait for its own only.
type reaper struct {
	mu      sync.Mutex
	waiting map[int]chan syscall.WaitStatus
}

func (r *reaper) run() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if err != nil {
			time.Sleep(50 * time.Millisecond) // no child yet
			continue
		}
		r.mu.Lock()
		if done, ok := r.waiting[pid]; ok {
			done <- status
			delete(r.waiting, pid)
		}
		r.mu.Unlock()
	}
}

func (r *reaper) start(args []string, log *os.File) (int, chan syscall.WaitStatus, error) {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return 0, nil, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, nil, err
	}
	defer null.Close()
	done := make(chan syscall.WaitStatus, 1)
	// Held over start and entry, so that a child that ends at once finds itself expected.
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, nil, fmt.Errorf("starting %s: %w", path, err)
	}
	r.waiting[pid] = done
	return pid, done, nil
}

// supervise keeps one component running.
func (r *reaper) supervise(c cluster, part component) {
	for ; ; time.Sleep(time.Second) {
		log, err := os.OpenFile(c.path("logs", part.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			fmt.Println(err)
			continue
		}
		_, done, err := r.start(part.args, log)
		if err != nil {
			fmt.Println(err)
		} else {
			status := <-done
			fmt.Fprintf(log, "\n== %s ended: exit %d, signal %v; starting it again\n", part.name, status.ExitStatus(), status.Signal())
			fmt.Printf("%s ended: exit %d, signal %v\n", part.name, status.ExitStatus(), status.Signal())
		}
		log.Close()
	}
}
