package cli

import "runtime/debug"

// version is the module's version as the Go toolchain stamped it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}

// saveMemory makes the collector run often, for commands that keep a table of
// connections: it holds no pointers, so collecting costs next to nothing, and
// memory may be what the host is short of. GOGC, where it is set, has its way.
func saveMemory(getenv func(string) string) { collectAt(25, getenv) }

// collectAt sets how much garbage makes the collector run, in percent of what
// is not garbage, unless GOGC does.
func collectAt(percent int, getenv func(string) string) {
	if getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}
