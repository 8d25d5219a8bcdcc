package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"deadpeer/internal/conn"
	"deadpeer/internal/engine"
	"deadpeer/internal/session"
)

// databasesVariable holds database URLs, separated by white space, that are
// looked into when no --db is given.
const databasesVariable = "DEADPEER_DB"

func (a *app) addDatabases(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&a.common.databases, "db", nil,
		"look into this database, repeatable: `URL`, or @FILE of mode 0600 with URLs (also: environment "+databasesVariable+")")
}

// databases reads the URLs of --db, else those of the environment.
func (a *app) databases() ([]session.Source, error) {
	if len(a.common.databases) == 0 {
		a.common.databases = strings.Fields(os.Getenv(databasesVariable))
	} else {
		defer a.warnOfArguments(a.common.databases)
	}
	var list []session.Source
	for _, value := range a.common.databases {
		urls := []string{value}
		if name, isFile := strings.CutPrefix(value, "@"); isFile {
			b, err := session.ReadFile(name)
			if err != nil {
				return nil, fmt.Errorf("--db: %w", err)
			}
			if urls = session.URLs(b); len(urls) == 0 {
				return nil, usage(fmt.Errorf("--db: %s has no URL", conn.Printable(value)))
			}
		}
		for _, u := range urls {
			source, err := session.Parse(u, os.Getenv)
			if err != nil {
				return nil, usage(fmt.Errorf("--db: %w", err))
			}
			list = append(list, source)
		}
	}
	return list, nil
}

// warnOfArguments: every user of the host can read them (proc(5), cmdline).
func (a *app) warnOfArguments(urls []string) {
	for _, u := range urls {
		if source, err := session.Parse(u, os.Getenv); err == nil && source.Inline() {
			a.say("every user of this host can read a password on the command line: write %s into a file of mode 0600 and give --db @FILE", source)
		}
	}
}

// nameSession narrows the filter to the connection of a session.
func (a *app) nameSession(ctx context.Context, req engine.Request, id string) (*conn.Filter, error) {
	switch {
	case len(req.Databases) == 0:
		return nil, usage(errors.New("--session needs --db"))
	case id == "":
		return nil, usage(errors.New("--session names none"))
	}
	found, err := a.engine().FindSession(ctx, req, id)
	if err != nil {
		return nil, err
	}
	named, err := conn.ParseFilter([]string{"cookie", "=", fmt.Sprint(found.Cookie)}, conn.Resolver{})
	if err != nil {
		return nil, err
	}
	return req.Filter.And(named), nil
}
