//go:build !linux

package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"deadpeer/internal/conn"
)

func unsupported(what string) error {
	return fmt.Errorf("%s on %s: %w", what, runtime.GOOS, errors.ErrUnsupported)
}

func defaultRuntimeDir() string { return "" }

// Scan is for Linux only.
func (e *Engine) Scan(context.Context, Request) (*Snapshot, error) {
	return nil, unsupported("list connections")
}

// Stream is for Linux only.
func (e *Engine) Stream(context.Context, Request, func(*Connection) error) (*Snapshot, error) {
	return nil, unsupported("list connections")
}

// Check is for Linux only.
func (e *Engine) Check(context.Context, Request) (*Snapshot, error) {
	return nil, unsupported("ask peers")
}

// Plan is for Linux only.
func (e *Engine) Plan(context.Context, Request) (*Plan, error) {
	return nil, unsupported("plan a release")
}

// FindSession is for Linux only.
func (e *Engine) FindSession(context.Context, Request, string) (conn.ID, error) {
	return conn.ID{}, unsupported("find the connection of a session")
}

// Act is for Linux only.
func (p *Plan) Act(context.Context) error { return unsupported("release connections") }

// Close does nothing.
func (p *Plan) Close() error { return nil }

// Diagnose says that nothing works here.
func (e *Engine) Diagnose() []Finding {
	return []Finding{{What: "operating system", Detail: runtime.GOOS, Mend: "run deadpeer on Linux"}}
}

// Clean is for Linux only.
func (e *Engine) Clean(context.Context) ([]Leftover, error) { return nil, unsupported("clean up") }

// Trace is for Linux only.
func (e *Engine) Trace(context.Context, TraceRequest, func(*Traced) error) (*TraceStats, error) {
	return nil, unsupported("capture packets")
}

// Attach is for Linux only.
func (e *Engine) Attach(context.Context, AttachRequest) (*Attached, error) {
	return nil, unsupported("attach to connections")
}

// Attachments is for Linux only.
func (e *Engine) Attachments(context.Context) ([]Attachment, error) {
	return nil, unsupported("list attachments")
}

// Programs is for Linux only.
func (e *Engine) Programs(context.Context) ([]Attachment, error) {
	return nil, unsupported("list programs with a policy")
}

// AttachmentIDs is for Linux only.
func (e *Engine) AttachmentIDs() ([]string, error) { return nil, unsupported("list attachments") }

// Detach is for Linux only.
func (e *Engine) Detach(context.Context, ...string) ([]*Attached, error) {
	return nil, unsupported("detach from connections")
}

// RunProgram is for Linux only.
func (e *Engine) RunProgram(context.Context, ProgramRequest) error {
	return unsupported("start a program with a policy")
}

// WatchProgram is for Linux only.
func (e *Engine) WatchProgram(string, io.Reader) error { return unsupported("watch a program") }
