package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"

	"deadpeer/internal/conn"
	"deadpeer/internal/sockdiag"
)

// dumpSource is the bare dump in C.
//
//go:embed testdata/dump.c
var dumpSource []byte

// bareDump is the bare dump where there is no C compiler.
func bareDump(ctx context.Context) error {
	diag, err := sockdiag.Open(nil)
	if err != nil {
		return err
	}
	count := 0
	err = diag.Dump(ctx, sockdiag.Query{NoInfo: true}, func(*conn.Sock, *sockdiag.Memory) error {
		count++
		return nil
	})
	fmt.Println(count)
	return errors.Join(err, diag.Close())
}
