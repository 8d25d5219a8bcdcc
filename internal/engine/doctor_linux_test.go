package engine

import (
	"strings"
	"testing"
)

// Yama is told of where it stands in the way, with the way out that there is.
func TestDiagnoseYama(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		scope  int
		ptrace bool
		mend   string
	}{
		{0, false, ""},
		{0, true, ""},
		{1, true, ""},
		{2, true, ""},
		{1, false, "kernel.yama.ptrace_scope=0"},
		{2, false, "CAP_SYS_PTRACE"},
		{3, true, "next boot"},
		{3, false, "next boot"},
	} {
		list := diagnoseYama(tt.scope, tt.ptrace)
		if tt.mend == "" && len(list) == 0 {
			continue
		}
		if tt.mend == "" || len(list) != 1 || list[0].OK || list[0].Optional || !strings.Contains(list[0].Mend, tt.mend) {
			t.Errorf("scope %d, CAP_SYS_PTRACE %v: %+v", tt.scope, tt.ptrace, list)
		}
	}
}
