// Command mkimage builds a small image from files of this machine and pushes it:
//
//	mkimage -busybox -cmd /hello REF /hello=bin/hello
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	"knarr.dev/knarr/test/image"
)

func main() {
	s := image.Spec{Files: map[string]string{}}
	flag.BoolVar(&s.Busybox, "busybox", false, "add busybox")
	cmd := flag.String("cmd", "", "command, separated by spaces")
	env := flag.String("env", "", "environment NAME=VALUE, separated by commas")
	flag.Parse()
	if flag.NArg() < 1 {
		fmt.Fprintln(os.Stderr, "usage: mkimage [-busybox] [-cmd CMD] [-env NAME=VALUE,...] REF [PATH=FILE...]")
		os.Exit(2)
	}
	s.Cmd = strings.Fields(*cmd)
	if *env != "" {
		s.Env = strings.Split(*env, ",")
	}
	for _, a := range flag.Args()[1:] {
		to, from, ok := strings.Cut(a, "=")
		if !ok {
			fmt.Fprintf(os.Stderr, "mkimage: %q: want PATH=FILE\n", a)
			os.Exit(2)
		}
		s.Files[to] = from
	}
	if err := image.Push(flag.Arg(0), s); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}
