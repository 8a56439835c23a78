// Command probe is what the checks' pods run: a few things that a shell would do, in a static binary, as there is no
// base image. Several are done one after the other when a + stands between them.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	args := os.Args[1:]
	for len(args) > 0 {
		end := 0
		for end < len(args) && args[end] != "+" {
			end++
		}
		if err := do(args[:end]); err != nil {
			fmt.Fprintln(os.Stderr, "probe:", err)
			os.Exit(1)
		}
		args = args[min(end+1, len(args)):]
	}
}

func do(args []string) error {
	argument := func(n int) string {
		if n < len(args) {
			return args[n]
		}
		return ""
	}
	switch argument(0) {
	case "say":
		fmt.Println(argument(1))
	case "write":
		if err := os.MkdirAll(filepath.Dir(argument(1)), 0o770); err != nil {
			return err
		}
		return os.WriteFile(argument(1), []byte(argument(2)), 0o660)
	case "cat":
		data, err := os.ReadFile(argument(1))
		fmt.Print(string(data))
		return err
	case "await":
		for {
			if _, err := os.Stat(argument(1)); err == nil {
				return nil
			}
			time.Sleep(50 * time.Millisecond)
		}
	case "lookup":
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		addresses, err := net.DefaultResolver.LookupHost(ctx, argument(1))
		fmt.Println(addresses)
		return err
	case "get":
		client := http.Client{Timeout: 5 * time.Second}
		resp, err := client.Get(argument(1))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(os.Stdout, resp.Body)
		return err
	case "serve":
		return http.ListenAndServe(argument(1), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, argument(2))
		}))
	case "sleep":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		<-stop
	default:
		return fmt.Errorf("unknown: %q", args)
	}
	return nil
}
