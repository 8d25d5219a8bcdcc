package heartbeat

import (
	"context"
	"log/slog"
)

// LogTo is an [Observer] that logs: pings and answers at Debug; start, stop
// and changes of state at Info; what is not ready or busy at Warn; failures at
// Error.
func LogTo(logger *slog.Logger) Observer { return &logObserver{logger} }

type logObserver struct{ logger *slog.Logger }

func (o *logObserver) Observe(e Event) {
	level, message := describe(e)
	ctx := context.Background()
	if !o.logger.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 6)
	if e.Handle != nil {
		attrs = append(attrs, slog.String("target", e.Handle.Name()))
	}
	switch e.Kind {
	case Answered, Reconnected:
		if e.Latency >= 0 {
			attrs = append(attrs, slog.Duration("latency", e.Latency))
		}
	case Heard:
		attrs = append(attrs, slog.Duration("ago", e.Latency))
	case Failed:
		attrs = append(attrs, slog.Int("failures", e.Failures))
	case Changed:
		attrs = append(attrs, slog.String("was", e.Was.String()), slog.String("state", e.State.String()))
	case Started:
		attrs = append(attrs, slog.Duration("period", e.Wait))
	case ReconnectFailed:
		attrs = append(attrs, slog.Duration("next", e.Wait))
	}
	if e.Attempt > 0 {
		attrs = append(attrs, slog.Int("attempt", e.Attempt))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.Any("error", e.Err))
	}
	o.logger.LogAttrs(ctx, level, message, attrs...)
}

func describe(e Event) (slog.Level, string) {
	switch e.Kind {
	case Sent:
		return slog.LevelDebug, "heartbeat sent"
	case Answered:
		return slog.LevelDebug, "heartbeat answered"
	case Heard:
		return slog.LevelDebug, "heartbeat not needed: peer was heard"
	case Failed:
		return slog.LevelError, "heartbeat failed"
	case Unready:
		return slog.LevelWarn, "heartbeat skipped: not ready"
	case Busy:
		return slog.LevelWarn, "heartbeat waits for the target's lock"
	case Changed:
		return slog.LevelInfo, "heartbeat state changed"
	case Reconnecting:
		return slog.LevelInfo, "heartbeat reconnects"
	case Reconnected:
		return slog.LevelInfo, "heartbeat reconnected"
	case ReconnectFailed:
		return slog.LevelError, "heartbeat could not reconnect"
	case Removed:
		return slog.LevelDebug, "heartbeat target removed"
	case Started:
		return slog.LevelInfo, "heartbeat started"
	case NotStarted:
		return slog.LevelInfo, "heartbeat not started: no period given"
	}
	return slog.LevelInfo, "heartbeat stopped"
}
