// A filter: each line of standard input in capitals, as it comes, and their number on standard error.
// It exits with 3 if there was none; `yes` says y for ever, `panic` panics.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

func main() {
	if len(os.Args) > 1 {
		end(os.Args[1])
	}
	read, counted := make(chan int), make(chan int)
	go func() {
		n := 0
		for range read {
			n++
		}
		counted <- n
	}()
	for in := bufio.NewReader(os.Stdin); ; {
		line, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) && line == "" {
			break
		} else if err != nil && !errors.Is(err, io.EOF) {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		fmt.Println(strings.ToUpper(strings.TrimSuffix(line, "\n")))
		read <- 1
	}
	close(read)
	n := <-counted
	before := time.Now()
	time.Sleep(time.Hour)
	fmt.Fprintf(os.Stderr, "%d lines for %s, %.0f h\n", n, os.Getenv("WHO"), time.Since(before).Hours())
	if n == 0 {
		os.Exit(3)
	}
}

func end(how string) {
	if how == "panic" {
		panic("on purpose")
	}
	for how == "yes" {
		fmt.Println("y")
	}
}
