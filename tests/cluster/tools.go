// The tools that the cluster and the tests use, built from pinned Go modules and kept in a cache outside the checkout.
// It owns what a cache entry is keyed by and that nobody ever sees half of one; which tool runs where is up.go's.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// build is one cache entry: some packages of one module, linked into one directory.
type build struct {
	name     string
	module   string   // folder below the sources
	packages []string // relative to the module, or import paths
	outputs  []string
	links    map[string]string // further names, as symlinks
	ldflags  func(src string) (string, error)
}

var builds = []build{
	{
		name: "kube", module: "kube", packages: []string{"."}, outputs: []string{"kube"},
		links: map[string]string{"kubectl": "kube"}, ldflags: kubeVersion,
	},
	{
		name: "tools", module: "tools",
		packages: []string{"./coredns", "helm.sh/helm/v3/cmd/helm", "github.com/yannh/kubeconform/cmd/kubeconform"},
		outputs:  []string{"coredns", "helm", "kubeconform"},
	},
	{name: "pause", module: "pause", packages: []string{"."}, outputs: []string{"pause"}},
	{name: "kwok", module: "kwok", packages: []string{"sigs.k8s.io/kwok/cmd/kwok"}, outputs: []string{"kwok"}},
}

// onDemand is what `tools` without names leaves out.
var onDemand = []string{"kwok"}

var kubernetesRequirement = regexp.MustCompile(`(?m)^\s+k8s\.io/kubernetes v((\d+)\.(\d+)\.\S+)$`)

// kubeVersion stamps Kubernetes' version into its binary, without which PodSecurity admission does not start.
func kubeVersion(src string) (string, error) {
	mod, err := os.ReadFile(filepath.Join(src, "kube", "go.mod"))
	if err != nil {
		return "", err
	}
	m := kubernetesRequirement.FindStringSubmatch(string(mod))
	if m == nil {
		return "", fmt.Errorf("kube/go.mod names no version of k8s.io/kubernetes")
	}
	version := "k8s.io/component-base/version."
	return fmt.Sprintf(" -X %sgitVersion=v%s -X %sgitMajor=%s -X %sgitMinor=%s -X k8s.io/client-go/pkg/version.gitVersion=v%s",
		version, m[1], version, m[2], version, m[3], m[1]), nil
}

// sourceDir is set by the linker; without it the working directory has to be the sources.
var sourceDir string

func sourceRoot() string {
	if sourceDir != "" {
		return sourceDir
	}
	dir, _ := os.Getwd()
	return dir
}

func cacheDir() string {
	if dir := os.Getenv("RUNLEDGER_CACHE"); dir != "" {
		return dir
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/root"
	}
	return filepath.Join(home, ".cache", "runledger")
}

// buildTools makes sure of the named tools (all but those on demand, when none is named) and returns a folder with a
// symlink to each. The folder is keyed as the tools are: checkouts that differ do not share it.
func buildTools(names ...string) (string, error) {
	all := sha256.New()
	var wanted []build
	keys := map[string]string{}
	for _, b := range builds {
		key, err := b.key()
		if err != nil {
			return "", err
		}
		keys[b.name] = key
		fmt.Fprintln(all, b.name, key)
		if slices.Contains(names, b.name) || slices.ContainsFunc(b.commands(), func(c string) bool { return slices.Contains(names, c) }) ||
			len(names) == 0 && !slices.Contains(onDemand, b.name) {
			wanted = append(wanted, b)
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(wanted, func(b build) bool { return b.name == name || slices.Contains(b.commands(), name) }) {
			return "", fmt.Errorf("there is no tool %q", name)
		}
	}
	bin := filepath.Join(cacheDir(), "bin", hex.EncodeToString(all.Sum(nil))[:16])
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", err
	}
	for _, b := range wanted {
		entry, err := b.ensure(keys[b.name])
		if err != nil {
			return "", err
		}
		for _, command := range b.commands() {
			target := filepath.Join(entry, command)
			if l, ok := b.links[command]; ok {
				target = filepath.Join(entry, l)
			}
			if err := symlink(target, filepath.Join(bin, command)); err != nil {
				return "", err
			}
		}
	}
	return bin, nil
}

func (b build) commands() []string {
	commands := slices.Clone(b.outputs)
	for link := range b.links {
		commands = append(commands, link)
	}
	slices.Sort(commands)
	return commands
}

// flags are those of the go command; all of them are in the key.
func (b build) flags() ([]string, error) {
	ldflags := "-s -w"
	if b.ldflags != nil {
		more, err := b.ldflags(sourceRoot())
		if err != nil {
			return nil, err
		}
		ldflags += more
	}
	// Versions of this checkout would change the key's meaning without changing the key.
	return append([]string{"-trimpath", "-buildvcs=false", "-ldflags", ldflags}, b.packages...), nil
}

func (b build) key() (string, error) {
	h := sha256.New()
	version, err := exec.Command("go", "env", "GOVERSION", "GOOS", "GOARCH").Output()
	if err != nil {
		return "", fmt.Errorf("the test cluster is built with Go, and `go env` fails: install Go 1.26 or later: %w", err)
	}
	flags, err := b.flags()
	if err != nil {
		return "", err
	}
	fmt.Fprintf(h, "%s%q\n", version, flags)
	root := filepath.Join(sourceRoot(), b.module)
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		fmt.Fprintf(h, "%s %x\n", rel, sha256.Sum256(data))
		return nil
	})
	return hex.EncodeToString(h.Sum(nil))[:16], err
}

// ensure returns the entry's directory. An entry appears by one rename of a finished directory, and only one process
// builds it: the others wait.
func (b build) ensure(key string) (string, error) {
	entry := filepath.Join(cacheDir(), b.name, key)
	if b.whole(entry) {
		now := time.Now()
		_ = os.Chtimes(entry, now, now) // prune keeps what was used lately
		return entry, nil
	}
	parent := filepath.Dir(entry)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	done := progress("waiting for another build of " + b.name)
	lock, err := lockDir(parent)
	done()
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if b.whole(entry) {
		return entry, nil
	}
	if free := freeDisk(parent); free < minimumDisk {
		return "", fmt.Errorf("building needs %d GB in %s, of which %d GB are free: free some, or set RUNLEDGER_CACHE to another disk", minimumDisk>>30, parent, free>>30)
	}
	// With the lock held, whatever other temporary directory there is was left by a killed build.
	leftovers, _ := filepath.Glob(filepath.Join(parent, ".new-*"))
	for _, dir := range append(leftovers, entry) {
		if err := os.RemoveAll(dir); err != nil {
			return "", err
		}
	}
	tmp, err := os.MkdirTemp(parent, ".new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	flags, err := b.flags()
	if err != nil {
		return "", err
	}
	done = progress("building " + strings.Join(b.outputs, ", "))
	defer done()
	cmd := exec.Command("go", append([]string{"build", "-o", tmp + "/"}, flags...)...)
	cmd.Dir = filepath.Join(sourceRoot(), b.module)
	// Static binaries run in images without a C library. GOFLAGS would escape the key.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("building %s: %w", b.name, err)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, entry); err != nil {
		return "", err
	}
	prune(parent, entry)
	return entry, nil
}

func (b build) whole(entry string) bool {
	for _, output := range b.outputs {
		if info, err := os.Stat(filepath.Join(entry, output)); err != nil || info.Size() == 0 {
			return false
		}
	}
	return true
}

// prune forgets entries that nobody used for a month, as each is up to 200 MB.
func prune(parent, keep string) {
	entries, _ := filepath.Glob(filepath.Join(parent, "*"))
	for _, entry := range entries {
		if info, err := os.Stat(entry); err == nil && entry != keep && time.Since(info.ModTime()) > 30*24*time.Hour {
			_ = os.RemoveAll(entry)
		}
	}
}

// symlink replaces a link in one step, as others may be using the folder.
func symlink(target, link string) error {
	if now, err := os.Readlink(link); err == nil && now == target {
		return nil
	}
	// Not the process's id: others of this process may be at the same link.
	tmp := fmt.Sprintf("%s.%x", link, rand.Uint64())
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, link)
}

func copyFile(dst, src string, mode os.FileMode) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
