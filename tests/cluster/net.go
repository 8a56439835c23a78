// The cluster's way to the host: a veth pair with an address from a range that the host routes nowhere, and, with
// egress, the host's NAT. It owns what is changed on the host's side and how each change is undone.
package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// rule is an iptables rule on the host: its table and its arguments after -A or -D.
type rule struct {
	Table  string   `json:"table"`
	Insert bool     `json:"insert"`
	Args   []string `json:"args"`
}

// chooseAddresses picks the first free /30 of 10.201.0.0/16, beginning where the name says, so that a cluster mostly
// gets the same one again. The caller holds the base directory's lock until the choice is saved.
func chooseAddresses(c cluster) (host, node string, err error) {
	taken, err := takenNetworks(c)
	if err != nil {
		return "", "", err
	}
	start, err := strconv.ParseUint(short(c.name), 16, 64)
	if err != nil {
		return "", "", err
	}
	const slots = 1 << 14
	for i := range uint64(slots) {
		n := (start + i) % slots * 4
		network := &net.IPNet{IP: net.IPv4(10, 201, byte(n>>8), byte(n)).To4(), Mask: net.CIDRMask(30, 32)}
		if slices.ContainsFunc(taken, func(t *net.IPNet) bool { return t.Contains(network.IP) || network.Contains(t.IP) }) {
			continue
		}
		return net.IPv4(10, 201, byte(n>>8), byte(n)+1).String(), net.IPv4(10, 201, byte(n>>8), byte(n)+2).String(), nil
	}
	return "", "", fmt.Errorf("the host has routes for all of 10.201.0.0/16, from which clusters get their addresses")
}

// takenNetworks are those that the host has routes for, and those that other clusters were promised.
func takenNetworks(c cluster) ([]*net.IPNet, error) {
	out, err := command("ip", "-4", "-o", "route", "show", "table", "all")
	if err != nil {
		return nil, err
	}
	var taken []*net.IPNet
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		// Local and broadcast routes have their kind before the address.
		if len(fields) > 1 && slices.Contains([]string{"local", "broadcast", "unreachable", "blackhole", "prohibit", "throw"}, fields[0]) {
			fields = fields[1:]
		}
		if len(fields) == 0 || fields[0] == "default" {
			continue
		}
		cidr := fields[0]
		if !strings.Contains(cidr, "/") {
			cidr += "/32"
		}
		if _, network, err := net.ParseCIDR(cidr); err == nil {
			if ones, _ := network.Mask.Size(); ones > 1 { // two halves of everything are a default route too
				taken = append(taken, network)
			}
		}
	}
	others, _ := filepath.Glob(filepath.Join(baseDir(), "*", stateFile))
	for _, file := range others {
		other := cluster{name: filepath.Base(filepath.Dir(file)), dir: filepath.Dir(file)}
		if s := other.load(); s != nil && other.name != c.name && s.HostIP != "" {
			if _, network, err := net.ParseCIDR(s.HostIP + "/30"); err == nil {
				taken = append(taken, network)
			}
		}
	}
	return taken, nil
}

// egressRules let the cluster's packets out through the host. They are the only ones a cluster has on the host:
// kube-proxy's are in its own network namespace.
func egressRules(c cluster, s *state) []rule {
	comment := []string{"-m", "comment", "--comment", s.Cgroup}
	return []rule{
		{"nat", false, append([]string{"POSTROUTING", "-s", s.NodeIP + "/32", "!", "-o", s.Veth, "-j", "MASQUERADE"}, comment...)},
		{"filter", true, append([]string{"FORWARD", "-i", s.Veth, "-j", "ACCEPT"}, comment...)},
		{"filter", true, append([]string{"FORWARD", "-o", s.Veth, "-j", "ACCEPT"}, comment...)},
	}
}

const forwardFile = "/proc/sys/net/ipv4/ip_forward"

// connect joins the network namespace of pid to the host. The state was saved before, so whatever of this was done
// when the process is killed is found and undone.
func connect(c cluster, s *state, pid int) error {
	steps := [][]string{
		{"ip", "link", "add", s.Veth, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(pid)},
		{"ip", "addr", "add", s.HostIP + "/30", "dev", s.Veth},
		{"ip", "link", "set", s.Veth, "up"},
	}
	for _, step := range steps {
		if _, err := command(step[0], step[1:]...); err != nil {
			return err
		}
	}
	if s.Forward != "" {
		if err := os.WriteFile(forwardFile, []byte("1"), 0); err != nil {
			return err
		}
	}
	for _, r := range s.Rules {
		verb := "-A"
		if r.Insert {
			verb = "-I" // a policy of the host's own may end the chain
		}
		if _, err := command("iptables", append([]string{"-w", "-t", r.Table, verb}, r.Args...)...); err != nil {
			return err
		}
	}
	return nil
}

// disconnect undoes connect, whole or half.
func disconnect(c cluster, s *state) error {
	for _, r := range s.Rules {
		exists := append([]string{"-w", "-t", r.Table, "-C"}, r.Args...)
		for {
			if _, err := command("iptables", exists...); err != nil {
				break
			}
			if _, err := command("iptables", append([]string{"-w", "-t", r.Table, "-D"}, r.Args...)...); err != nil {
				return err
			}
		}
	}
	if s.Forward != "" && !othersForward(c) {
		if err := os.WriteFile(forwardFile, []byte(s.Forward), 0); err != nil {
			return err
		}
	}
	if s.Veth != "" {
		if _, err := os.Stat("/sys/class/net/" + s.Veth); err == nil {
			// It may vanish by itself meanwhile, with the namespace that its peer is in.
			if _, err := command("ip", "link", "del", s.Veth); err != nil {
				if _, still := os.Stat("/sys/class/net/" + s.Veth); still == nil {
					return err
				}
			}
		}
	}
	return nil
}

// othersForward says whether another cluster with egress still needs the host to forward.
func othersForward(c cluster) bool {
	others, _ := filepath.Glob(filepath.Join(baseDir(), "*", stateFile))
	return slices.ContainsFunc(others, func(file string) bool {
		other := cluster{name: filepath.Base(filepath.Dir(file)), dir: filepath.Dir(file)}
		s := other.load()
		return s != nil && other.name != c.name && s.Egress
	})
}

// command runs a program of the host; its error says what the program said.
func command(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// forwardBefore returns the host's forwarding as it was before any cluster; empty when it needs no change.
func forwardBefore(c cluster) (string, error) {
	now, err := os.ReadFile(forwardFile)
	if err != nil {
		return "", err
	}
	if strings.TrimSpace(string(now)) == "0" {
		return "0", nil
	}
	others, _ := filepath.Glob(filepath.Join(baseDir(), "*", stateFile))
	for _, file := range others {
		other := cluster{name: filepath.Base(filepath.Dir(file)), dir: filepath.Dir(file)}
		if s := other.load(); s != nil && other.name != c.name && s.Forward != "" {
			return s.Forward, nil
		}
	}
	return "", nil
}
