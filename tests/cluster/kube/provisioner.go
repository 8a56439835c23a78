// The volume provisioner: `local` PersistentVolumes on the cluster's one node, each a directory of its own. It owns
// creating and deleting those directories; claims, binding and mounting are Kubernetes'. Volumes are `local` and not
// `hostPath` because the kubelet applies a pod's fsGroup to the first and not to the second.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

// directories provisions every volume as a directory below base.
type directories struct {
	base string
}

func (d directories) Provision(_ context.Context, o controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	if mode := o.PVC.Spec.VolumeMode; mode != nil && *mode != corev1.PersistentVolumeFilesystem {
		return nil, controller.ProvisioningFinished, fmt.Errorf("volume mode %s is not supported", *mode)
	}
	if o.SelectedNodeName == "" {
		return nil, controller.ProvisioningFinished, fmt.Errorf("the StorageClass must bind with WaitForFirstConsumer")
	}
	path := filepath.Join(d.base, o.PVName)
	// A fresh volume belongs to root, 0755, as a newly made file system does, so that a pod without fsGroup fails
	// here as it would with a real driver.
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	filesystem := corev1.PersistentVolumeFilesystem
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: o.PVName},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *o.StorageClass.ReclaimPolicy,
			AccessModes:                   o.PVC.Spec.AccessModes,
			VolumeMode:                    &filesystem,
			MountOptions:                  o.StorageClass.MountOptions,
			Capacity: corev1.ResourceList{
				corev1.ResourceStorage: o.PVC.Spec.Resources.Requests[corev1.ResourceStorage],
			},
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key:      corev1.LabelHostname,
					Operator: corev1.NodeSelectorOpIn,
					Values:   []string{o.SelectedNodeName},
				}}}},
			}},
		},
	}, controller.ProvisioningFinished, nil
}

func (d directories) Delete(_ context.Context, pv *corev1.PersistentVolume) error {
	// A PersistentVolume is an object that users can write; one that points elsewhere must not delete it.
	if pv.Spec.Local == nil || pv.Spec.Local.Path != filepath.Join(d.base, pv.Name) || strings.ContainsRune(pv.Name, '/') {
		return &controller.IgnoredError{Reason: "not a directory that this provisioner made"}
	}
	return os.RemoveAll(pv.Spec.Local.Path)
}

func newProvisionerCommand() *cobra.Command {
	var kubeconfig, base, name string
	cmd := &cobra.Command{
		Use:          "provisioner",
		Short:        "Provision local PersistentVolumes as directories of this node",
		SilenceUsage: true,
		RunE: func(*cobra.Command, []string) error {
			config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
			if err != nil {
				return err
			}
			// The default of 5 requests a second would make forty claims wait for each other.
			config.QPS, config.Burst = 200, 400
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			if err := awaitRights(ctx, func(ctx context.Context) error {
				_, err := client.StorageV1().StorageClasses().List(ctx, metav1.ListOptions{Limit: 1})
				return err
			}); err != nil {
				return err
			}
			// Tests would wait for the default of 15 s after the first conflict.
			retry := workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, 10*time.Second)
			controller.NewProvisionController(klog.NewContext(ctx, klog.Background()), client, name, directories{base},
				controller.LeaderElection(false), controller.Threadiness(8), controller.RateLimiter(retry)).Run(ctx)
			return nil
		},
	}
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig of the provisioner's own user")
	cmd.Flags().StringVar(&base, "directory", "", "where the volumes' directories go")
	cmd.Flags().StringVar(&name, "provisioner", "runledger.test/local", "name that StorageClasses refer to")
	cmd.Flags().AddGoFlagSet(flag.CommandLine)
	return cmd
}

// awaitRights waits for this program's RBAC objects, which are applied after it starts. Informers that are refused
// once come back later and later; asking first does not.
func awaitRights(ctx context.Context, ask func(context.Context) error) error {
	return wait.PollUntilContextCancel(ctx, 200*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		return ask(ctx) == nil, nil
	})
}
