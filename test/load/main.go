// Command load sends HTTP requests at a steady rate until it is told to stop
// (SIGTERM, SIGINT, or -for), and prints what became of them as one line of JSON.
//
// Each request uses a connection of its own unless -keepalive is given. Nothing
// is tried again: a request that fails has failed.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"
)

type result struct {
	Sent     int            `json:"sent"`
	Failed   int            `json:"failed"`
	Seconds  float64        `json:"seconds"`
	Rate     float64        `json:"rate"`
	P50      float64        `json:"p50_ms"`
	P99      float64        `json:"p99_ms"`
	Answers  map[string]int `json:"answers"`
	Failures map[string]int `json:"failures,omitempty"`
}

type sample struct {
	at     time.Duration // since the start
	took   time.Duration
	answer string
	err    error
}

func main() {
	rate := flag.Int("rate", 2000, "requests per second")
	workers := flag.Int("workers", 64, "most requests at one time")
	total := flag.Duration("for", 0, "stop after this time; 0: on a signal")
	keep := flag.Bool("keepalive", false, "send many requests over each connection")
	timeout := flag.Duration("timeout", 5*time.Second, "of one request")
	picture := flag.String("svg", "", "draw the answers over time into this file")
	flag.Parse()
	target, err := url.Parse(flag.Arg(0))
	if err != nil || target.Host == "" {
		fmt.Fprintln(os.Stderr, "usage: load [flags] http://HOST:PORT/PATH")
		os.Exit(2)
	}
	if target.Port() == "" {
		target.Host = net.JoinHostPort(target.Hostname(), "80")
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	var end <-chan time.Time
	if *total > 0 {
		end = time.After(*total)
	}
	ask := func() (string, error) { return once(target, *timeout) }
	if *keep {
		c := &http.Client{Timeout: *timeout, Transport: &http.Transport{MaxIdleConnsPerHost: *workers}}
		ask = func() (string, error) { return pooled(c, target.String()) }
	}
	begin := time.Now()
	tickets := make(chan struct{}, *workers)
	samples := make(chan sample, 1024)
	var wg sync.WaitGroup
	for range *workers {
		wg.Go(func() {
			for range tickets {
				start := time.Now()
				answer, err := ask()
				samples <- sample{start.Sub(begin), time.Since(start), answer, err}
			}
		})
	}
	done := make(chan result)
	var chart chart
	go collect(samples, &chart, done)
	pace(*rate, tickets, stop, end)
	close(tickets)
	wg.Wait()
	close(samples)
	r := <-done
	r.Seconds = time.Since(begin).Seconds()
	r.Rate = float64(r.Sent) / r.Seconds
	if *picture != "" {
		if err := os.WriteFile(*picture, []byte(chart.svg()), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "load:", err)
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil || r.Failed > 0 {
		os.Exit(1)
	}
}

// pace hands out tickets evenly; a late one is made up for.
func pace(rate int, tickets chan<- struct{}, stop <-chan os.Signal, end <-chan time.Time) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	begin, given := time.Now(), 0
	for {
		select {
		case <-stop:
			return
		case <-end:
			return
		case now := <-tick.C:
			due := int(now.Sub(begin).Seconds() * float64(rate))
			for ; given < due; given++ {
				select {
				case tickets <- struct{}{}:
				case <-stop:
					return
				case <-end:
					return
				}
			}
		}
	}
}

// once sends one request over a new connection.
func once(u *url.URL, timeout time.Duration) (string, error) {
	c, err := net.DialTimeout("tcp", u.Host, timeout)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	path := u.RequestURI()
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, u.Host); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	return read(resp)
}

func pooled(c *http.Client, u string) (string, error) {
	resp, err := c.Get(u)
	if err != nil {
		return "", err
	}
	return read(resp)
}

func read(resp *http.Response) (string, error) {
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %s", resp.Status)
	}
	return strings.TrimSpace(string(b)), nil
}

// collect counts answers by their first two words: "hello v1".
func collect(in <-chan sample, c *chart, out chan<- result) {
	r := result{Answers: map[string]int{}, Failures: map[string]int{}}
	var took []time.Duration
	for s := range in {
		r.Sent++
		if s.err != nil {
			r.Failed++
			r.Failures[s.err.Error()]++
			c.add(s.at, failure)
			continue
		}
		words := strings.Fields(s.answer)
		answer := strings.Join(words[:min(2, len(words))], " ")
		r.Answers[answer]++
		c.add(s.at, answer)
		took = append(took, s.took)
	}
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	if n := len(took); n > 0 {
		r.P50, r.P99 = ms(took[n/2]), ms(took[n*99/100])
	}
	out <- r
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
