package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man8")
	var stderr strings.Builder
	if code := run([]string{dir}, &stderr); code != 0 || stderr.Len() > 0 {
		t.Fatalf("exit code %d, %s", code, &stderr)
	}
	for file, want := range map[string]string{
		"deadpeer.8":          "fB--version",
		"deadpeer-check.8":    "check - Ask every selected connection",
		"deadpeer-release.8":  "fB--even-alive\\fP\n",
		"deadpeer-sessions.8": "fB--db\\fP=URL\n",
		"deadpeer-scan.8":     "no-owners",
		"deadpeer-doctor.8":   "clean",
		"deadpeer-demo.8":     "demo",
		"deadpeer-beat.8":     "get_info of ZEO 5\n  firebird://", // a table
	} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || !strings.Contains(string(b), want) || strings.Contains(string(b), "Auto generated") {
			t.Errorf("%s: %v, want it to contain %q:\n%s", file, err, want, b)
		}
	}
}

func TestRunFails(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{nil, 2, "usage:"},
		{[]string{"/proc/nosuch"}, 1, "write man pages: mkdir /proc/nosuch"},
	} {
		var stderr strings.Builder
		if code := run(c.args, &stderr); code != c.code || !strings.Contains(stderr.String(), c.says) {
			t.Errorf("%q: exit code %d, %s", c.args, code, &stderr)
		}
	}
}
