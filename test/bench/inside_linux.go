package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"time"

	"deadpeer/internal/cli"
	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/internal/verdict"
)

// What the outside of a process does not show is measured with deadpeer's
// packages inside one of ours.

// countAllocations runs the command line once and prints the number of
// allocations.
func countAllocations(ctx context.Context, args []string) error {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	code := cli.Run(ctx, args, os.Stdin, null, os.Stderr)
	runtime.ReadMemStats(&after)
	if code != 0 {
		return fmt.Errorf("deadpeer %s: exit code %d", args, code)
	}
	fmt.Println(after.Mallocs - before.Mallocs)
	return null.Close()
}

// checked is what came of a check.
type checked struct {
	Asking    time.Duration // until the first question
	Answered  time.Duration // until every living one was answered for
	All       time.Duration // until every verdict
	Proof     time.Duration // what a proof of death needs on these paths
	Wrong     int           // verdicts that say the contrary, and connections without one
	Undecided int           // suspects: of slow ones the proof may take longer than deadpeer asks
}

// watchCheck checks everything, and compares with the truth: of N connections
// those to the given prefix are dead.
func watchCheck(ctx context.Context, args []string) error {
	start := time.Now()
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	dead, err := netip.ParsePrefix(args[1])
	if err != nil {
		return err
	}
	var r checked
	snap, err := engine.New(engine.Options{}).Check(ctx, engine.Request{Progress: func(p engine.Progress) {
		since := time.Since(start)
		if r.Asking == 0 {
			r.Asking = since - p.Elapsed
		}
		if r.Answered == 0 && p.Alive >= n/2 {
			r.Answered = since
		}
	}})
	if err != nil {
		return err
	}
	r.All = time.Since(start)
	r.Wrong = n - snap.Len()
	for c := range snap.All() {
		want := conn.Alive
		if dead.Contains(c.Sock.Peer().Addr()) {
			want = conn.Dead
			r.Proof = max(r.Proof, verdict.MinSilence, time.Duration(c.Evidence.Fail.Needed())*verdict.Wait(c.Sock))
		}
		switch c.Judgement.Verdict {
		case want:
		case conn.Suspect:
			r.Undecided++
		default:
			r.Wrong++
			fmt.Fprintf(os.Stderr, "wrong: %s is %s: %s\n", c.Sock.Peer(), c.Judgement.Verdict, c.Reason())
		}
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// watchOne asks one living connection several times and prints the median
// time from the beginning of asking to the verdict.
func watchOne(ctx context.Context, args []string) error {
	dead, err := netip.ParsePrefix(args[0])
	if err != nil {
		return err
	}
	e := engine.New(engine.Options{})
	snap, err := e.Scan(ctx, engine.Request{NoOwners: true})
	if err != nil {
		return err
	}
	var cookie string
	for c := range snap.All() {
		if !dead.Contains(c.Sock.Peer().Addr()) {
			cookie = strconv.FormatUint(c.Sock.Cookie, 10)
			break
		}
	}
	filter, err := conn.ParseFilter([]string{"cookie", "=", cookie}, conn.Resolver{})
	if err != nil {
		return err
	}
	var times []time.Duration
	for range 9 {
		var took time.Duration
		_, err := e.Check(ctx, engine.Request{Filter: filter, Progress: func(p engine.Progress) {
			if took == 0 && p.Alive == 1 {
				took = p.Elapsed
			}
		}})
		if err != nil {
			return err
		}
		if took == 0 {
			return errors.New("a living peer did not answer")
		}
		times = append(times, took)
		time.Sleep(600 * time.Millisecond) // peers limit how often they answer
	}
	slices.Sort(times)
	_, err = io.WriteString(os.Stdout, strconv.FormatInt(int64(times[len(times)/2]), 10))
	return err
}
