// What pods find in the cluster, as the operator's own tests rely on it: volumes, sidecars, names, tokens, refusals.
package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const restrictedPod = `
apiVersion: v1
kind: Namespace
metadata:
  name: restricted
  labels: {pod-security.kubernetes.io/enforce: restricted}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: restricted}
spec:
  accessModes: [ReadWriteOncePod]
  resources: {requests: {storage: 1Gi}}
---
apiVersion: v1
kind: Pod
metadata: {name: worker, namespace: restricted, labels: {app: worker}}
spec:
  automountServiceAccountToken: false
  securityContext:
    runAsUser: 1000
    runAsGroup: 1000
    fsGroup: 1000
    fsGroupChangePolicy: OnRootMismatch
    runAsNonRoot: true
    seccompProfile: {type: RuntimeDefault}
  initContainers:
  - name: sidecar
    image: runledger.test/probe:1
    restartPolicy: Always
    args: [/probe, write, /state/note, from the sidecar, +, sleep]
    securityContext: &locked {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
    startupProbe: {exec: {command: [/probe, cat, /state/note]}, periodSeconds: 1}
    volumeMounts:
    - {name: data, mountPath: /state, subPath: state}
    - {name: token, mountPath: /token}
  containers:
  - name: main
    image: runledger.test/probe:1
    args: [/probe, write, /work/file, from main, +, say, main has started, +, serve, ":8080", hello]
    securityContext: *locked
    volumeMounts:
    - {name: data, mountPath: /work, subPath: work}
    - {name: data, mountPath: /state, subPath: state}
  volumes:
  - name: data
    persistentVolumeClaim: {claimName: data}
  - name: token
    projected:
      sources:
      - serviceAccountToken: {audience: runledger, path: token, expirationSeconds: 600}
---
apiVersion: v1
kind: Service
metadata: {name: worker, namespace: restricted}
spec:
  type: NodePort
  selector: {app: worker}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
`

func TestPodsFindWhatARealClusterHas(t *testing.T) {
	c := testCluster(t, "pods")
	mustUp(t, c)
	if out, err := clusterCommand(c, "load-image", testImage).CombinedOutput(); err != nil {
		t.Fatalf("load-image: %v\n%s", err, out)
	}
	mustKubectl(t, c, restrictedPod, "apply", "-f", "-")
	wait := func(t *testing.T) {
		t.Helper()
		if out, err := kubectl(c, "", "wait", "-n", "restricted", "pod/worker", "--for=condition=Ready", "--timeout=60s"); err != nil {
			described, _ := kubectl(c, "", "describe", "-n", "restricted", "pod/worker")
			t.Fatalf("%s\n%s", out, described)
		}
	}
	wait(t)
	inPod := func(t *testing.T, container string, args ...string) string {
		t.Helper()
		return mustKubectl(t, c, "", append([]string{"exec", "-n", "restricted", "worker", "-c", container, "--", "/probe"}, args...)...)
	}
	expect := func(t *testing.T, got, want string) {
		t.Helper()
		if !strings.Contains(got, want) {
			t.Errorf("got %q, want %q in it", got, want)
		}
	}

	t.Run("a non-root pod writes below a subPath of its volume", func(t *testing.T) {
		expect(t, inPod(t, "main", "cat", "/work/file"), "from main")
	})
	t.Run("a native sidecar shares the volume and starts first", func(t *testing.T) {
		expect(t, inPod(t, "main", "cat", "/state/note"), "from the sidecar")
	})
	t.Run("logs arrive", func(t *testing.T) {
		expect(t, mustKubectl(t, c, "", "logs", "-n", "restricted", "worker", "-c", "main"), "main has started")
	})
	t.Run("services have names", func(t *testing.T) {
		expect(t, inPod(t, "main", "lookup", "kubernetes.default"), apiService)
		expect(t, inPod(t, "main", "get", "http://worker.restricted.svc"), "hello")
	})
	t.Run("a projected token has its audience", func(t *testing.T) {
		parts := strings.Split(inPod(t, "sidecar", "cat", "/token/token"), ".")
		if len(parts) != 3 {
			t.Fatalf("%d parts", len(parts))
		}
		claims, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err != nil {
			t.Fatal(err)
		}
		expect(t, string(claims), `"aud":["runledger"]`)
	})
	t.Run("the host reaches a NodePort", func(t *testing.T) {
		eventually(t, "NodePort", 10*time.Second, func() error {
			resp, err := http.Get("http://" + net.JoinHostPort(c.load().NodeIP, "30080"))
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if body, _ := io.ReadAll(resp.Body); string(body) != "hello" {
				return fmt.Errorf("got %q", body)
			}
			return nil
		})
	})
	t.Run("pods reach the host's end of the pair and nothing beyond", func(t *testing.T) {
		listener, err := net.Listen("tcp", net.JoinHostPort(c.load().HostIP, "0"))
		if err != nil {
			t.Fatal(err)
		}
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "host") }))
		server.Listener = listener
		server.Start()
		defer server.Close()
		expect(t, inPod(t, "main", "get", server.URL), "host")
		start := time.Now()
		if out, err := kubectl(c, "", "exec", "-n", "restricted", "worker", "-c", "main", "--", "/probe", "get", "http://198.51.100.1"); err == nil {
			t.Errorf("there is a way out: %s", out)
		}
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("having no way out took %s to see", took)
		}
	})
	t.Run("a second pod waits for a ReadWriteOncePod volume", func(t *testing.T) {
		second := strings.Replace(restrictedPod[strings.LastIndex(restrictedPod, "kind: Pod\n")-len("apiVersion: v1\n"):], "name: worker", "name: second", 1)
		second = second[:strings.Index(second, "---")]
		mustKubectl(t, c, second, "apply", "-f", "-")
		eventually(t, "second pod", 20*time.Second, func() error {
			out, err := kubectl(c, "", "get", "pod", "-n", "restricted", "second", "-o", "jsonpath={.status.conditions[?(@.type=='PodScheduled')].message}")
			if err == nil && !strings.Contains(out, "ReadWriteOncePod") {
				err = fmt.Errorf("got %q", out)
			}
			return err
		})
		mustKubectl(t, c, "", "delete", "pod", "-n", "restricted", "second")
	})
	t.Run("a privileged pod is refused", func(t *testing.T) {
		out, err := kubectl(c, "", "run", "-n", "restricted", "root", "--image="+probeImage, "--privileged")
		if err == nil {
			t.Errorf("accepted: %s", out)
		}
		expect(t, out, "violates PodSecurity")
	})
	t.Run("an image that is not there fails soon", func(t *testing.T) {
		mustKubectl(t, c, "", "run", "absent", "--image=registry.invalid/absent:1")
		eventually(t, "pull", 20*time.Second, func() error {
			out, err := kubectl(c, "", "get", "pod", "absent", "-o", "jsonpath={.status.containerStatuses[0].state.waiting.reason}")
			if err == nil && !strings.HasPrefix(out, "ErrImagePull") && !strings.HasPrefix(out, "ImagePullBackOff") {
				err = fmt.Errorf("got %q", out)
			}
			return err
		})
	})
	t.Run("the audit log has each write once, by its user", func(t *testing.T) {
		mustKubectl(t, c, "", "create", "configmap", "counted", "--as=counter", "--as-group=system:masters")
		log, err := os.ReadFile(c.auditLog())
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, `"impersonatedUser":{"username":"counter"`) && strings.Contains(line, `"verb":"create"`) {
				count++
			}
			if strings.Contains(line, `"verb":"get"`) || strings.Contains(line, `"stage":"RequestReceived"`) {
				t.Errorf("not a write, or one half of it: %s", line)
			}
		}
		if count != 1 {
			t.Errorf("%d lines for one write", count)
		}
	})
	t.Run("commands run inside", func(t *testing.T) {
		out, err := clusterCommand(c, "exec", "--", "hostname").Output()
		if err != nil || strings.TrimSpace(string(out)) != nodeName {
			t.Errorf("%v: %q", err, out)
		}
	})
	t.Run("a deleted claim's directory goes", func(t *testing.T) {
		volumes := func() []string { found, _ := filepath.Glob(c.path("volumes", "*")); return found }
		if len(volumes()) != 1 {
			t.Errorf("before: %v", volumes())
		}
		mustKubectl(t, c, "", "delete", "-n", "restricted", "pod/worker", "pvc/data", "--timeout=30s")
		eventually(t, "directory", 20*time.Second, func() error {
			if left := volumes(); len(left) > 0 {
				return fmt.Errorf("left: %v", left)
			}
			return nil
		})
	})
}
