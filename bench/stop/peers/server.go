// The service on Go's net/http with the Shutdown of its standard library.
//
//	server PORT [TIMEOUT_SECONDS]
//
// The listener has SO_REUSEPORT, so that a roll on one port is possible.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const text = "hello, world"

func note(what string) {
	path := os.Getenv("BENCH_STOP_NOTES")
	if path == "" {
		return
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err == nil {
		fmt.Fprintf(file, "0 %s\n", what)
		file.Close()
	}
}

func millis(path string) time.Duration {
	n, _ := strconv.Atoi(path[strings.LastIndex(path, "/")+1:])
	return time.Duration(n) * time.Millisecond
}

func answer(w http.ResponseWriter, body string) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	io.WriteString(w, body)
}

func begin(w http.ResponseWriter) {
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	io.WriteString(w, text[:1])
	w.(http.Flusher).Flush()
}

func never(r *http.Request) {
	<-r.Context().Done()
	note("cancelled")
}

func routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/hello", func(w http.ResponseWriter, r *http.Request) { answer(w, text) })
	mux.HandleFunc("/pid", func(w http.ResponseWriter, r *http.Request) {
		answer(w, strconv.Itoa(os.Getpid()))
	})
	mux.HandleFunc("/wait/", func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(millis(r.URL.Path))
		answer(w, text)
	})
	mux.HandleFunc("/head/", func(w http.ResponseWriter, r *http.Request) {
		begin(w)
		time.Sleep(millis(r.URL.Path))
		io.WriteString(w, text[1:])
	})
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) {
		begin(w)
		never(r)
	})
	mux.HandleFunc("/never", func(w http.ResponseWriter, r *http.Request) { never(r) })
	mux.HandleFunc("/body", func(w http.ResponseWriter, r *http.Request) {
		size, _ := io.Copy(io.Discard, r.Body)
		answer(w, strconv.FormatInt(size, 10))
	})
	return mux
}

func reusable(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, 15, 1)
	})
	if err != nil {
		return err
	}
	return failed
}

func main() {
	timeout := 60.0
	if len(os.Args) > 2 {
		timeout, _ = strconv.ParseFloat(os.Args[2], 64)
	}
	config := net.ListenConfig{Control: reusable}
	listener, err := config.Listen(context.Background(), "tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	server := &http.Server{Handler: routes()}
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM, syscall.SIGINT)
	go server.Serve(listener)
	<-told
	limit := time.Duration(timeout * float64(time.Second))
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		server.Close()
		os.Exit(1)
	}
	note("shutdown")
}
