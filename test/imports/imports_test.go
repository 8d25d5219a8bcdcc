// Package imports holds the tree to its import rules (ARCHITECTURE.md,
// "Rules"), on every OS it builds for. Test files are free.
package imports

import (
	"errors"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "deadpeer"

// public packages may be imported by anyone's program.
var public = []string{"deadpeer/keepalive", "deadpeer/forecast", "deadpeer/heartbeat"}

// pure packages decide; they do no I/O.
var pure = []string{"deadpeer/internal/verdict", "deadpeer/internal/conn", "deadpeer/forecast"}

// acting packages ask peers or change something; engine alone may use them.
var acting = []string{"deadpeer/internal/probe", "deadpeer/internal/release", "deadpeer/internal/attach", "deadpeer/internal/host"}

// onlookers are given snapshots and can never act.
var onlookers = []string{"deadpeer/internal/web", "deadpeer/internal/metrics"}

const engine = "deadpeer/internal/engine"

// session can end the sessions of databases that it has opened.
const session = "deadpeer/internal/session"

// systems are those that make vet builds for.
var systems = []string{"linux", "darwin", "windows", "freebsd", "openbsd"}

// graph has the imports of every package of the module.
type graph map[string][]string

func (g graph) violations() []string {
	var list []string
	say := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	for pkg, imports := range g {
		for _, imp := range imports {
			if slices.Contains(public, pkg) && !standard(imp) && !within(imp, "golang.org/x/sys") && !slices.Contains(public, imp) {
				say("%s imports %s: public packages import the standard library, golang.org/x/sys and each other only", pkg, imp)
			}
			if pkg != engine && slices.ContainsFunc(acting, func(a string) bool { return within(imp, a) && !within(pkg, a) }) {
				say("%s imports %s: only engine asks and acts", pkg, imp)
			}
		}
	}
	for _, pkg := range pure {
		for _, chain := range g.reach(pkg, nil) {
			if imp := chain[len(chain)-1]; doesIO(imp) {
				say("%s does I/O: %s", pkg, strings.Join(chain, " -> "))
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// reach lists the ways from pkg to everything it imports, through packages of
// this module. Behind keepalive nobody looks: forecast takes its Policy from
// there, and nothing that touches a socket.
func (g graph) reach(pkg string, way []string) (chains [][]string) {
	way = append(slices.Clip(way), pkg)
	for _, imp := range g[pkg] {
		if slices.Contains(way, imp) {
			continue
		}
		chains = append(chains, append(slices.Clip(way), imp))
		if within(imp, module) && imp != "deadpeer/keepalive" {
			chains = append(chains, g.reach(imp, way)...)
		}
	}
	return chains
}

func doesIO(imp string) bool {
	if imp == "net/netip" {
		return false
	}
	return slices.ContainsFunc([]string{"os", "net", "syscall", "golang.org/x", "io/ioutil", "log"},
		func(p string) bool { return within(imp, p) })
}

func standard(imp string) bool {
	first, _, _ := strings.Cut(imp, "/")
	return !strings.Contains(first, ".") && first != module
}

// within reports whether imp is the package at path or one below it.
func within(imp, path string) bool { return imp == path || strings.HasPrefix(imp, path+"/") }

// actorUses names what a file takes from engine that can act.
func actorUses(file *ast.File) []string {
	return uses(file, engine, "Actor", "Engine", "New", "Plan")
}

// uses lists which of some names of a package a file takes.
func uses(file *ast.File, pkg string, wanted ...string) (names []string) {
	name := ""
	for _, imp := range file.Imports {
		if importPath, err := strconv.Unquote(imp.Path.Value); err == nil && importPath == pkg {
			if name = path.Base(pkg); imp.Name != nil {
				name = imp.Name.Name
			}
		}
	}
	if name == "." {
		return []string{"everything"}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			x, ok := sel.X.(*ast.Ident)
			if ok && name != "" && x.Name == name && slices.Contains(wanted, sel.Sel.Name) {
				names = append(names, sel.Sel.Name)
			}
		}
		return true
	})
	return names
}

// read gives the graph of the tree as built for goos, the files of the
// onlookers, and those that import session without being engine.
func read(t *testing.T, goos string) (graph, []string, []string) {
	t.Helper()
	ctx := build.Default
	ctx.GOOS, ctx.GOARCH, ctx.CgoEnabled = goos, "amd64", false
	root := filepath.Join("..", "..")
	g, watched, asking := graph{}, []string(nil), []string(nil)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || !d.IsDir():
			return err
		case path != root && strings.HasPrefix(d.Name(), "."), d.Name() == "testdata":
			return fs.SkipDir
		}
		p, err := ctx.ImportDir(path, 0)
		if _, empty := errors.AsType[*build.NoGoError](err); empty || err == nil && len(p.GoFiles) == 0 {
			return nil
		} else if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		name := module + "/" + filepath.ToSlash(rel)
		g[name] = p.Imports
		for _, f := range p.GoFiles {
			if slices.ContainsFunc(onlookers, func(o string) bool { return within(name, o) }) {
				watched = append(watched, filepath.Join(path, f))
			}
			if name != engine && slices.Contains(p.Imports, session) {
				asking = append(asking, filepath.Join(path, f))
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return g, watched, asking
}

func TestTree(t *testing.T) {
	t.Parallel()
	for _, goos := range systems {
		t.Run(goos, func(t *testing.T) {
			t.Parallel()
			g, watched, asking := read(t, goos)
			for _, pkg := range append([]string{"deadpeer/keepalive", "deadpeer/cmd/deadpeer", engine}, pure...) {
				if g[pkg] == nil {
					t.Errorf("%s has nothing to build on %s", pkg, goos)
				}
			}
			for _, v := range g.violations() {
				t.Error(v)
			}
			for _, file := range watched {
				f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
				if err != nil {
					t.Fatal(err)
				}
				for _, name := range actorUses(f) {
					t.Errorf("%s uses engine's %s: it may have the Reader only", file, name)
				}
			}
			for _, file := range asking {
				f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
				if err != nil {
					t.Fatal(err)
				}
				for range uses(f, session, "Open", "DB") {
					t.Errorf("%s opens a database: only engine ends sessions", file)
				}
			}
		})
	}
}

// TestRules holds the rules to trees that break them.
func TestRules(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		tree graph
		want string // "" for none
	}{
		{"bad: public imports internal", graph{"deadpeer/keepalive": {"deadpeer/internal/conn"}}, "deadpeer/keepalive imports deadpeer/internal/conn"},
		{"bad: public imports foreign", graph{"deadpeer/heartbeat": {"github.com/lib/pq"}}, "deadpeer/heartbeat imports github.com/lib/pq"},
		{"good: public imports public, sys and std", graph{"deadpeer/forecast": {"deadpeer/keepalive", "math"}, "deadpeer/keepalive": {"golang.org/x/sys/unix", "net", "syscall"}}, ""},
		{"good: an adapter may import its client", graph{"deadpeer/heartbeat/postgres": {"github.com/lib/pq"}}, ""},
		{"bad: cli asks", graph{"deadpeer/internal/cli": {"deadpeer/internal/probe"}}, "only engine asks and acts"},
		{"bad: asker imports releaser", graph{"deadpeer/internal/probe": {"deadpeer/internal/release"}}, "only engine asks and acts"},
		{"good: engine asks", graph{engine: {"deadpeer/internal/probe", "deadpeer/internal/release"}}, ""},
		{"bad: pure opens files", graph{"deadpeer/internal/verdict": {"os"}}, "deadpeer/internal/verdict does I/O: deadpeer/internal/verdict -> os"},
		{"bad: pure through another", graph{"deadpeer/internal/verdict": {"deadpeer/internal/conn"}, "deadpeer/internal/conn": {"deadpeer/internal/a"}, "deadpeer/internal/a": {"net/http"}}, "deadpeer/internal/a -> net/http"},
		{"bad: pure calls the system", graph{"deadpeer/internal/conn": {"golang.org/x/sys/unix"}}, "deadpeer/internal/conn does I/O"},
		{"good: addresses are no I/O", graph{"deadpeer/internal/conn": {"net/netip", "fmt"}}, ""},
		{"good: imports in a circle end", graph{"deadpeer/internal/conn": {"deadpeer/internal/verdict"}, "deadpeer/internal/verdict": {"deadpeer/internal/conn"}}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := strings.Join(test.tree.violations(), "\n")
			if test.want == "" && got != "" || !strings.Contains(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestActorUses(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]int{
		`package a; import "deadpeer/internal/engine"; var r engine.Reader`:            0,
		`package a; import "deadpeer/internal/engine"; var r engine.Actor`:             1,
		`package a; import e "deadpeer/internal/engine"; var r = e.New(e.Options{})`:   1,
		`package a; import . "deadpeer/internal/engine"`:                               1,
		`package a; import "deadpeer/internal/engine"; var _ = x.(engine.Actor).Check`: 1,
		`package a; import "example.org/engine"; var r engine.Actor`:                   0,
	} {
		f, err := parser.ParseFile(token.NewFileSet(), "a.go", source, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := actorUses(f); len(got) != want {
			t.Errorf("%s: %v, want %d", source, got, want)
		}
	}
}
