// Command cluster makes a real Kubernetes for tests, on one machine and without a container engine: every process in
// namespaces of its own, so that it vanishes with the one process that holds them. This file owns the command line.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"
)

const usage = `usage: cluster COMMAND [--name NAME] [ARG...]

  up [--owner-pid PID] [--egress]   make the cluster, or find it healthy; it goes when PID does
  down                              remove every trace of it
  status                            say what of it is there
  env                               print KUBECONFIG and the like as shell assignments
  kubeconfig                        print the admin kubeconfig's path
  load-image TAR...                 import images into its containerd
  exec -- COMMAND...                run a command in its namespaces
  tools [NAME...]                   build the tools (kwok only when named) and print their folder
  make-image TAR REF FILE=/PATH... [-- ENTRYPOINT...]
                                    make an image of static files

NAME defaults to one made from the checkout's path. Caches are in $RUNLEDGER_CACHE (~/.cache/runledger), clusters in
$RUNLEDGER_CLUSTERS (/var/lib/runledger-clusters).
`

func main() {
	err := run(os.Args[1:])
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() > 0 && os.Args[1] == "exec" {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		fmt.Print(usage)
		return nil
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	name := flags.String("name", "", "")
	var o upOptions
	if args[0] == "up" || args[0] == "keeper" {
		flags.IntVar(&o.ownerPID, "owner-pid", 0, "")
		flags.BoolVar(&o.egress, "egress", false, "")
	}
	if err := flags.Parse(args[1:]); err != nil {
		return errors.New("see the usage above")
	}
	c, err := newCluster(*name)
	if err != nil {
		return err
	}
	switch args[0] {
	case "up":
		return up(c, o)
	case "keeper":
		return keeperMain(c, o.ownerPID)
	case "init":
		return initMain(c)
	case "down":
		return down(c)
	case "status":
		return status(c)
	case "tools":
		bin, err := buildTools(flags.Args()...)
		if err == nil {
			fmt.Println(bin)
		}
		return err
	case "make-image":
		return makeImage(flags.Args())
	case "env", "kubeconfig", "load-image", "exec":
		s, err := running(c)
		if err != nil {
			return err
		}
		return withCluster(c, s, args[0], flags.Args())
	}
	fmt.Fprint(os.Stderr, usage)
	return fmt.Errorf("there is no command %q", args[0])
}

func withCluster(c cluster, s *state, command string, args []string) error {
	switch command {
	case "env":
		printEnv(c, s)
	case "kubeconfig":
		fmt.Println(c.kubeconfig())
	case "load-image":
		for _, file := range args {
			done := progress("importing " + file)
			err := loadImage(c, s, file)
			done()
			if err != nil {
				return err
			}
		}
	case "exec":
		if len(args) == 0 {
			return errors.New("exec needs a command")
		}
		cmd := inside(s, args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		return cmd.Run()
	}
	return nil
}

// running returns the state of a cluster that was completed and still has its processes.
func running(c cluster) (*state, error) {
	s := c.load()
	if !s.lives() {
		return nil, fmt.Errorf("cluster %s is not up", c.name)
	}
	return s, nil
}

func status(c cluster) error {
	s := c.load()
	if s == nil {
		if _, err := os.Stat(c.dir); err == nil {
			return fmt.Errorf("cluster %s is half made: `up` starts over, `down` removes it", c.name)
		}
		fmt.Printf("cluster %s does not exist\n", c.name)
		return nil
	}
	fmt.Printf("cluster   %s\ndirectory %s\nkeeper    pid %d, alive: %t\ninit      pid %d, alive: %t\ncomplete  %t\nnode      %s\nhost      %s on %s\negress    %t\n",
		c.name, c.dir, s.Keeper.PID, s.Keeper.alive(), s.Init.PID, s.Init.alive(), s.Complete, s.NodeIP, s.HostIP, s.Veth, s.Egress)
	if s, err := running(c); err != nil {
		return err
	} else if a, err := newAPI(c, s); err != nil {
		return err
	} else if err := a.ready(); err != nil {
		return err
	}
	fmt.Println("ready     true")
	return nil
}

// printEnv prints what a shell can evaluate: up's and env's result, and all of their standard output.
func printEnv(c cluster, s *state) {
	fmt.Printf(`export KUBECONFIG='%s'
export PATH='%s':"$PATH"
export RUNLEDGER_CLUSTER='%s'
export RUNLEDGER_CLUSTER_DIR='%s'
export RUNLEDGER_CLUSTER_BIN='%s'
export RUNLEDGER_AUDIT_LOG='%s'
export RUNLEDGER_CONTAINERD_SOCKET='%s'
export RUNLEDGER_NODE_NAME='%s'
export RUNLEDGER_NODE_IP='%s'
export RUNLEDGER_HOST_IP='%s'
export RUNLEDGER_POD_CIDR='%s'
export RUNLEDGER_SERVICE_CIDR='%s'
`, c.kubeconfig(), s.Bin, c.name, c.dir, s.Bin, c.auditLog(), c.containerdSocket(), nodeName, s.NodeIP, s.HostIP, podCIDR, serviceCIDR)
}

// announce says what `up` will change before it does.
func announce(c cluster, o upOptions, missing []string) {
	say("cluster %s will use:", c.name)
	say("  network, mount, PID, UTS and IPC namespaces of its own")
	say("  a network interface %s with a free /30 of 10.201.0.0/16", c.veth())
	say("  cgroup /%s", c.cgroup())
	say("  directories %s and %s", c.dir, cacheDir())
	if o.egress {
		say("  three iptables rules with the comment %s, and net.ipv4.ip_forward=1", c.cgroup())
	}
	if len(missing) > 0 {
		say("  Debian packages, to be installed: %v", missing)
	}
}

var began = time.Now()

// say prints progress, on standard error so that standard output stays evaluable.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "[%3.0fs] %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
}

// progress says what is going on when it takes longer than a moment, and again every ten seconds, until done.
func progress(what string) (done func()) {
	start, stop := time.Now(), make(chan struct{})
	var once sync.Once
	go func() {
		tick := time.NewTicker(10 * time.Second)
		defer tick.Stop()
		select {
		case <-stop:
			return
		case <-time.After(time.Second):
		}
		for {
			say("%s (%.0f s so far)", what, time.Since(start).Seconds())
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	return func() { once.Do(func() { close(stop) }) }
}
