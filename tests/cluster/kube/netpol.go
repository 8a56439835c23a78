// NetworkPolicy for one node: watches pods, namespaces and policies, and has iptables refuse what no policy allows. It
// owns when the rules are written and how they get in; what a policy means is policy.go's. It is here because no CNI
// plugin that enforces policies can be built from one Go module.
package main

import (
	"context"
	"fmt"
	"os/exec"
	"os/signal"
	"reflect"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

func newNetpolCommand() *cobra.Command {
	var kubeconfig string
	cmd := &cobra.Command{
		Use:          "netpol",
		Short:        "Enforce NetworkPolicies on this node's pods",
		SilenceUsage: true,
		RunE: func(*cobra.Command, []string) error {
			config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
			if err != nil {
				return err
			}
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			if err := awaitRights(ctx, func(ctx context.Context) error {
				_, err := client.NetworkingV1().NetworkPolicies("").List(ctx, metav1.ListOptions{Limit: 1})
				return err
			}); err != nil {
				return err
			}
			return enforce(ctx, client)
		},
	}
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig of the enforcer's own user")
	return cmd
}

// enforce writes all rules anew after each change. That is wasteful and simple, and a test cluster is small.
func enforce(ctx context.Context, client kubernetes.Interface) error {
	factory := informers.NewSharedInformerFactory(client, 0)
	pods, namespaces, policies := factory.Core().V1().Pods(), factory.Core().V1().Namespaces(), factory.Networking().V1().NetworkPolicies()
	changed := make(chan struct{}, 1)
	notify := func() {
		select {
		case changed <- struct{}{}:
		default: // one is waiting already
		}
	}
	for _, informer := range []cache.SharedIndexInformer{pods.Informer(), namespaces.Informer(), policies.Informer()} {
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { notify() },
			UpdateFunc: func(_, _ any) { notify() },
			DeleteFunc: func(any) { notify() },
		}); err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	notify()
	var written map[string][]string
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		now := snapshot{}
		var err error
		if now.pods, err = pods.Lister().List(labels.Everything()); err != nil {
			return err
		}
		if now.namespaces, err = namespaces.Lister().List(labels.Everything()); err != nil {
			return err
		}
		if now.policies, err = policies.Lister().List(labels.Everything()); err != nil {
			return err
		}
		chains := now.chains()
		if reflect.DeepEqual(chains, written) {
			continue
		}
		if err := restore(ctx, render(chains, written)); err != nil {
			klog.ErrorS(err, "rules not written; trying again")
			time.AfterFunc(time.Second, notify)
			continue
		}
		written = chains
	}
}

// restore replaces this program's chains in one step, and makes sure that they come before all others.
func restore(ctx context.Context, rules string) error {
	cmd := exec.CommandContext(ctx, "iptables-restore", "--wait", "--noflush")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("iptables-restore: %w: %s\n%s", err, out, rules)
	}
	for _, chain := range []string{"FORWARD", "INPUT"} {
		if exec.CommandContext(ctx, "iptables", "-w", "-C", chain, "-j", top).Run() == nil {
			continue
		}
		if out, err := exec.CommandContext(ctx, "iptables", "-w", "-I", chain, "-j", top).CombinedOutput(); err != nil {
			return fmt.Errorf("iptables: %w: %s", err, out)
		}
	}
	return nil
}
