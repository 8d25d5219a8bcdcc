package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"deadpeer/heartbeat"
	"deadpeer/internal/beat"
)

// beatFlags are the flags of beat.
type beatFlags struct {
	output   string
	period   duration
	deadline duration
	failures int
	until    duration
	once     bool
	metrics  string
}

func (a *app) beat() *cobra.Command {
	var flags beatFlags
	cmd := &cobra.Command{
		Use:   "beat URL...",
		Short: "Ping the applications behind URLs over connections that are held open",
		Long: `beat holds one connection to each URL and pings it by period with a message that
the application answers, where the protocol has one. It prints state and latency,
a table on a terminal and JSON lines otherwise, and reconnects what is down.

States: up; suspect (a ping failed); down (--failures pings failed); not_ready.
After a failed ping the next comes at once until it is down. A ping without a
connection, since it was refused, fails at once, too. What is down is connected
to at once, then after waits of at most 1 s, 2 s, 4 s … up to 1 min, at random.

  zeo://HOST:PORT/STORAGE[?tls=true]   get_info of ZEO 5
  firebird://USER:PASSWORD@HOST/DB     op_info_database
  postgres://USER:PASSWORD@HOST/DB     an empty query; libpq's options
  mysql://USER:PASSWORD@HOST/DB        COM_PING; also mariadb://
  redis://:PASSWORD@HOST               PING; rediss:// with TLS
  http://HOST/PATH, https://           GET, below 500 is an answer; HTTP/2 PING if
                                       no path is given, which a proxy answers
  grpc://HOST:PORT[/SERVICE]           health check; grpcs:// with TLS
  ws://HOST/PATH, wss://               WebSocket ping
  tcp://HOST:PORT                      keepalive probe (Linux): proves the next
                                       kernel only, which may be a proxy's; has
                                       no latency, the kernel sends it when its
                                       timer fires

Passwords are not shown, but other users see the command line: the clients'
own variables and files (PGPASSWORD, PGPASSFILE) are better.`,
		Example: `  deadpeer beat zeo://10.0.0.9:8100/1 redis://10.0.0.7
  deadpeer beat --once https://10.0.0.9/healthz        # exits 10 when it is down
  deadpeer beat --period 5s --metrics-listen :9464 postgres://watch@10.0.0.5/orders`,
		Args: arguments(1, math.MaxInt),
		RunE: func(cmd *cobra.Command, words []string) error {
			return a.runBeat(cmd.Context(), flags, words)
		},
	}
	addOutput(cmd, &flags.output, "auto", "table", "jsonl")
	f := cmd.Flags()
	f.Var(&flags.period, "period", "silence before a ping (default $"+heartbeat.EnvPeriod+" or 30s)")
	f.Var(&flags.deadline, "deadline", "time a ping or an attempt to connect may take (default 10s)")
	f.IntVar(&flags.failures, "failures", 2, "pings in a row that must fail before an endpoint is down")
	f.BoolVar(&flags.once, "once", false, "connect and ping once; exit 10 when an endpoint is down")
	f.Var(&flags.until, "until", "end after this time (default never)")
	f.StringVar(&flags.metrics, "metrics-listen", "", "serve metrics for Prometheus on this `address`, at /metrics")
	f.BoolVar(&a.common.noColor, "no-color", false, "no colour (also: environment NO_COLOR)")
	return cmd
}

func (a *app) runBeat(ctx context.Context, flags beatFlags, words []string) error {
	switch {
	case flags.failures < 1:
		return usage(fmt.Errorf("--failures %d: want 1 or more", flags.failures))
	case flags.once && (flags.until != 0 || flags.metrics != ""):
		return usage(errors.New("--once goes with neither --until nor --metrics-listen"))
	}
	if flags.deadline == 0 {
		flags.deadline = duration(10 * time.Second)
	}
	var endpoints []*beat.Endpoint
	for _, word := range words {
		e, err := beat.Open(word)
		if err != nil {
			return usage(err)
		}
		defer func() { _ = e.Close() }() // nothing is lost with it
		if strings.HasPrefix(e.Name, "tcp:") && time.Duration(flags.deadline) < 2*time.Second {
			return usage(fmt.Errorf("--deadline %s: want 2s or more with tcp, whose ping takes up to a second", span(time.Duration(flags.deadline))))
		}
		endpoints = append(endpoints, e)
	}
	if flags.until != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(flags.until))
		defer cancel()
	}
	view := a.beatView(flags.output, !flags.once, endpoints)
	var err error
	if flags.once {
		err = a.beatOnce(ctx, flags, endpoints, view)
	} else {
		err = a.beatOn(ctx, flags, endpoints, view)
	}
	if shown := view.close(); shown != nil {
		return shown
	}
	return err
}

// beatOnce connects to and pings all endpoints at the same time.
func (a *app) beatOnce(ctx context.Context, flags beatFlags, endpoints []*beat.Endpoint, view *beatView) error {
	down := make(chan bool, len(endpoints))
	for _, e := range endpoints {
		go func() {
			ctx, cancel := context.WithTimeout(ctx, time.Duration(flags.deadline))
			defer cancel()
			latency, err := pingOnce(ctx, e)
			line := beatLine{at: time.Now(), endpoint: e, state: heartbeat.Up, latency: latency}
			if err != nil {
				line.state, line.latency, line.err = heartbeat.Down, 0, err
			}
			view.show(line)
			down <- err != nil
		}()
	}
	code := exitDone
	for range endpoints {
		if <-down {
			code = exitDead
		}
	}
	if code != exitDone && ctx.Err() == nil {
		return &exit{code, nil}
	}
	return ctx.Err()
}

// pingOnce is how long the ping took, without the connecting before it.
func pingOnce(ctx context.Context, e *beat.Endpoint) (time.Duration, error) {
	return inTime(ctx, func() (time.Duration, error) {
		if err := e.Reconnect(ctx); err != nil {
			return 0, err
		}
		start := time.Now()
		err := e.Ping(ctx)
		if e.Untimed() {
			return 0, err
		}
		return time.Since(start), err
	})
}

// inTime does not wait for a client that ignores the end of ctx.
func inTime[T any](ctx context.Context, call func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		value, err := call()
		done <- answer{value, err}
	}()
	var grace <-chan time.Time
	for ended := ctx.Done(); ; {
		select {
		case a := <-done:
			return a.value, a.err
		case <-ended:
			ended, grace = nil, time.After(200*time.Millisecond)
		case <-grace:
			return answer{}.value, ctx.Err()
		}
	}
}

// beatOn pings until ctx ends.
func (a *app) beatOn(ctx context.Context, flags beatFlags, endpoints []*beat.Endpoint, view *beatView) error {
	observers := []heartbeat.Observer{&beatObserver{view}}
	if flags.metrics != "" {
		var names []string
		for _, e := range endpoints {
			names = append(names, e.Name)
		}
		metrics := beat.NewMetrics(names)
		observers = append(observers, metrics)
		stop, err := a.serveMetrics(ctx, flags.metrics, metrics)
		if err != nil {
			return err
		}
		defer stop()
	}
	opts := heartbeat.Options{
		Period: time.Duration(flags.period), Deadline: time.Duration(flags.deadline), Failures: flags.failures,
		Observer: heartbeat.Observers(observers...),
	}
	monitor := heartbeat.New(opts)
	err := monitor.Start(ctx)
	if err == nil && monitor.Period() == 0 { // none given anywhere
		opts.Period = 30 * time.Second
		monitor = heartbeat.New(opts)
		err = monitor.Start(ctx)
	}
	if err != nil {
		return usage(err)
	}
	var connecting sync.WaitGroup
	for _, e := range endpoints {
		connecting.Go(func() {
			t := &beatTarget{Endpoint: e}
			t.connect(ctx, time.Duration(flags.deadline))
			monitor.Add(e.Name, t).PingNow()
		})
	}
	<-ctx.Done()
	connecting.Wait()
	// Pings under way are of no interest to anybody now.
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_ = monitor.Stop(ended)
	return nil // interrupted or --until: its ordinary end
}

// beatTarget is an endpoint whose pings tell why there is no connection.
type beatTarget struct {
	*beat.Endpoint

	mu         sync.Mutex
	connecting bool  // an attempt to connect has not returned
	why        error // the last one failed

	told string // of the last failed ping; the observer's
}

// connect is the first attempt, which comes before the monitor and so counts as
// no ping: what fails there the first ping tells.
func (t *beatTarget) connect(ctx context.Context, deadline time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	_, err := inTime(ctx, func() (struct{}, error) { return struct{}{}, t.Reconnect(ctx) })
	t.mu.Lock()
	defer t.mu.Unlock()
	t.why = err
}

// Reconnect connects. It does not beside a first attempt that ignored its
// deadline: the later of two would close the other's connection.
func (t *beatTarget) Reconnect(ctx context.Context) error {
	t.mu.Lock()
	if t.connecting {
		t.mu.Unlock()
		return heartbeat.ErrNotReturned
	}
	t.connecting = true
	t.mu.Unlock()
	err := t.Endpoint.Reconnect(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.connecting, t.why = false, err
	return err
}

// Ping pings.
func (t *beatTarget) Ping(ctx context.Context) error {
	err := t.Endpoint.Ping(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil && t.why != nil {
		return t.why
	}
	return err
}

// Heard passes on what the endpoint's own client knows.
func (t *beatTarget) Heard() time.Duration {
	if h, ok := t.Target.(heartbeat.Hearer); ok {
		return h.Heard()
	}
	return -1
}

func (a *app) serveMetrics(ctx context.Context, address string, metrics http.Handler) (stop func(), err error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--metrics-listen: %w", err)
	}
	a.say("metrics on http://%s/metrics", listener.Addr())
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	server := &http.Server{
		Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       log.New(io.Discard, "", 0), // what others do wrong is not for stderr
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			a.say("metrics: %v", err)
		}
	}()
	return func() {
		_ = server.Close()
		<-done
	}, nil
}

// beatObserver turns events into lines.
type beatObserver struct{ view *beatView }

// Observe shows what came of each ping and attempt to reconnect.
func (o *beatObserver) Observe(e heartbeat.Event) {
	if e.Handle == nil {
		return
	}
	t, ok := e.Handle.Target().(*beatTarget)
	if !ok {
		return
	}
	line := beatLine{at: time.Now(), endpoint: t.Endpoint, state: e.State, err: e.Err}
	switch e.Kind {
	case heartbeat.Answered:
		line.latency = max(e.Latency, 0)
		line.p99 = e.Handle.Latency().Quantile(0.99)
	case heartbeat.Failed:
		t.told = t.Text(e.Err)
	case heartbeat.ReconnectFailed:
		if e.Attempt == 1 && t.Text(e.Err) == t.told {
			return // it comes at once after the ping that said so
		}
	case heartbeat.Heard:
		if e.State == e.Was {
			return
		}
	default:
		return
	}
	o.view.show(line)
}
