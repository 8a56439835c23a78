// Container images made of a few static files, as nothing can be pulled: a `docker save` archive that containerd
// imports. It owns the archive's format; real Containerfiles are for real image builders.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"sort"
	"strings"
)

type image struct {
	ref        string
	files      map[string]string // path in the image → file of the host; all are executable
	entrypoint []string
	user       string
}

// write writes the archive. Times are zero, so that equal files make equal images.
func (i image) write(file string) error {
	layer, err := os.CreateTemp("", "runledger-layer-")
	if err != nil {
		return err
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	digest := sha256.New()
	if err := i.writeLayer(io.MultiWriter(layer, digest)); err != nil {
		return err
	}
	size, err := layer.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": "1970-01-01T00:00:00Z",
		"config": map[string]any{"Entrypoint": i.entrypoint, "User": i.user, "Env": []string{"PATH=/usr/bin:/bin:/"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(digest.Sum(nil))}},
	})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(config)
	configName := hex.EncodeToString(sum[:]) + ".json"
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": []string{i.ref}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	w := tar.NewWriter(out)
	for _, part := range []struct {
		name string
		size int64
		data io.Reader
	}{
		{"layer.tar", size, layer},
		{configName, int64(len(config)), bytes.NewReader(config)},
		{"manifest.json", int64(len(manifest)), bytes.NewReader(manifest)},
	} {
		if err := w.WriteHeader(&tar.Header{Name: part.name, Mode: 0o644, Size: part.size}); err != nil {
			return err
		}
		if _, err := io.Copy(w, part.data); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return out.Close()
}

func (i image) writeLayer(out io.Writer) error {
	w := tar.NewWriter(out)
	made := map[string]bool{}
	dir := func(name string, mode int64) error {
		if made[name] || name == "." {
			return nil
		}
		made[name] = true
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode})
	}
	if err := dir("tmp", 0o1777); err != nil {
		return err
	}
	paths := make([]string, 0, len(i.files))
	for name := range i.files {
		paths = append(paths, name)
	}
	sort.Strings(paths)
	for _, name := range paths {
		inside := strings.TrimPrefix(path.Clean(name), "/")
		for at, char := range inside {
			if char == '/' {
				if err := dir(inside[:at], 0o755); err != nil {
					return err
				}
			}
		}
		if err := addFile(w, inside, i.files[name]); err != nil {
			return err
		}
	}
	return w.Close()
}

func addFile(w *tar.Writer, inside, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: inside, Mode: 0o755, Size: info.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

// makeImage is the command: OUT.tar REF FILE=/PATH… [-- ENTRYPOINT…]
func makeImage(args []string) error {
	usage := fmt.Errorf("usage: cluster make-image OUT.tar NAME:TAG FILE=/PATH... [-- ENTRYPOINT...]")
	if len(args) < 3 {
		return usage
	}
	i := image{ref: args[1], files: map[string]string{}}
	for n, arg := range args[2:] {
		if arg == "--" {
			i.entrypoint = args[2+n+1:]
			break
		}
		file, inside, ok := strings.Cut(arg, "=")
		if !ok {
			return usage
		}
		i.files[inside] = file
	}
	return i.write(args[0])
}
