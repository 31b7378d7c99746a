// Command hello is the server of the demonstration: it answers with its version
// and its pod's name, and exits at once on SIGTERM, as the least considerate
// server would.
package main

import (
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		<-term
		os.Exit(0)
	}()
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	answer := fmt.Sprintf("hello %s from %s\n", os.Getenv("VERSION"), host)
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, answer) })
	if err := http.ListenAndServe(":8080", nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
