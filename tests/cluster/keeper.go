// The keeper: the one process of a cluster in the host's namespaces. It starts init in namespaces of its own, joins
// them to the host, and takes everything down when the cluster's owner dies or `up` is killed before it is done. If
// the keeper itself is killed, the kernel kills init, and with it everything in its PID namespace.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// startKeeper starts the keeper detached from the caller's terminal and session. Closing the returned file tells it
// that `up` is done or dead; which of the two, it sees in the state.
func startKeeper(c cluster, ownerPID int) (*os.File, error) {
	log, err := os.OpenFile(c.path("logs", "keeper.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	cmd := exec.Command("/proc/self/exe", "keeper", "--name", c.name, "--owner-pid", strconv.Itoa(ownerPID))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{read}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		write.Close()
		return nil, err
	}
	go cmd.Wait() // so that it is no zombie while this process still looks at it
	return write, nil
}

func keeperMain(c cluster, ownerPID int) error {
	// The kernel sends init its death signal when the thread that started it ends, so this one must stay.
	runtime.LockOSThread()
	s := c.load()
	if s == nil {
		return fmt.Errorf("%s has no state", c.dir)
	}
	upDone := watch(func() { _, _ = os.NewFile(3, "up").Read(make([]byte, 1)) })

	var ownerGone chan struct{}
	if ownerPID > 0 {
		fd, err := unix.PidfdOpen(ownerPID, 0)
		if err != nil {
			fmt.Printf("owner %d: %v\n", ownerPID, err)
			return takeDown(c, "its owner is gone")
		}
		ownerGone = watch(func() {
			for {
				n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
				if n > 0 || err != nil && err != unix.EINTR {
					return
				}
			}
		})
	}

	init, err := startInit(c, s)
	if err != nil {
		fmt.Println(err)
		return err
	}
	initGone := watch(func() { _ = init.Wait() })

	for {
		select {
		case <-initGone:
			// The directory stays: its logs tell why. The next `up` or `down` removes it.
			fmt.Println("init ended:", init.ProcessState)
			return nil
		case <-ownerGone:
			return takeDown(c, "its owner is gone")
		case <-upDone:
			upDone = nil
			if now := c.load(); now == nil || !now.Complete {
				return takeDown(c, "`up` ended before the cluster was complete")
			}
		}
	}
}

// takeDown removes the keeper's own cluster, unless another process has begun to.
func takeDown(c cluster, why string) error {
	fmt.Println("taking the cluster down:", why)
	lock, err := c.lock(false)
	if err != nil || lock == nil {
		return err
	}
	defer lock.Close()
	return destroy(c)
}

// startInit starts init stopped at its pipe, records it, gives it its cgroup and network, and lets it go on.
func startInit(c cluster, s *state) (*exec.Cmd, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer write.Close()
	cmd := exec.Command("/proc/self/exe", "init", "--name", c.name)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "HOME="+c.dir)
	cmd.ExtraFiles = []*os.File{read}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting init in namespaces of its own: %w", err)
	}
	read.Close()
	if s.Keeper, err = identify(os.Getpid()); err != nil {
		return nil, err
	}
	if s.Init, err = identify(cmd.Process.Pid); err != nil {
		return nil, err
	}
	if err := c.save(s); err != nil {
		return nil, err
	}
	if err := makeCgroup(s.Cgroup, cmd.Process.Pid); err != nil {
		return nil, err
	}
	if err := connect(c, s, cmd.Process.Pid); err != nil {
		return nil, err
	}
	_, err = write.Write([]byte{1})
	return cmd, err
}

// watch returns a channel that is closed when wait returns.
func watch(wait func()) chan struct{} {
	done := make(chan struct{})
	go func() {
		wait()
		close(done)
	}()
	return done
}
