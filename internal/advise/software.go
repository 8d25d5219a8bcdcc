package advise

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"deadpeer/internal/conn"
)

//go:embed software.yaml
var data []byte

// Roles of software.
const (
	Server = "server"
	Client = "client"
	Host   = "host" // not a program: the system it runs on
)

// Software is one entry of software.yaml.
type Software struct {
	ID      string   `yaml:"id"`
	Name    string   `yaml:"name"`
	Role    string   `yaml:"role"`
	Comm    []string `yaml:"comm"` // names of its processes, as the kernel has them; globs (path.Match)
	Files   []Place  `yaml:"files"`
	Keys    []Key    `yaml:"keys"`
	Example string   `yaml:"example"` // template of the lines to put
	Apply   []string `yaml:"apply"`   // templates: what makes it take effect, and when
	Caveats []string `yaml:"caveats"`
	Source  []string `yaml:"source"` // of the vendor
}

// Place is where a file usually is.
type Place struct {
	Path  string `yaml:"path" json:"path"`
	Where string `yaml:"where" json:"where"`
}

// Key is one setting of the software.
type Key struct {
	Name    string `yaml:"name" json:"name"`
	Part    string `yaml:"part" json:"part,omitempty"` // of a policy: on, idle, interval, probes or user-timeout
	Unit    string `yaml:"unit" json:"unit,omitempty"` // s, ms or min
	Meaning string `yaml:"meaning" json:"meaning"`
}

// List gives all entries. The slice is the caller's.
func List() ([]Software, error) { return parse(data) }

// ByName finds an entry by its id or name, whatever their case. The error
// suggests an id that is close, and lists all.
func ByName(name string) (Software, error) {
	list, err := List()
	if err != nil {
		return Software{}, err
	}
	var ids []string
	for _, s := range list {
		if strings.EqualFold(s.ID, name) || strings.EqualFold(s.Name, name) {
			return s, nil
		}
		ids = append(ids, s.ID)
	}
	meant := ""
	if near := conn.Nearest(strings.ToLower(name), ids); near != "" {
		meant = "did you mean " + near + "? "
	}
	return Software{}, fmt.Errorf("find software: no %q: %sthere are %s", conn.Printable(name), meant, strings.Join(ids, ", "))
}

// parse reads entries, and refuses fields it does not know and entries that
// could not be shown.
func parse(text []byte) ([]Software, error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	var list []Software
	if err := dec.Decode(&list); err != nil {
		return nil, fmt.Errorf("read software.yaml: %w", err)
	}
	if err := dec.Decode(new([]Software)); !errors.Is(err, io.EOF) {
		return nil, errors.New("read software.yaml: more than one document")
	}
	seen := map[string]bool{}
	for _, s := range list {
		if err := s.validate(); err != nil {
			return nil, fmt.Errorf("read software.yaml: entry %q: %w", s.ID, err)
		}
		if seen[s.ID] {
			return nil, fmt.Errorf("read software.yaml: entry %q is there twice", s.ID)
		}
		seen[s.ID] = true
	}
	return list, nil
}

func (s Software) validate() error {
	oneOf := func(what, value string, allowed ...string) error {
		if !slices.Contains(allowed, value) {
			return fmt.Errorf("%s %q is not one of %s", what, value, strings.Join(allowed, ", "))
		}
		return nil
	}
	errs := []error{oneOf("role", s.Role, Server, Client, Host)}
	for what, empty := range map[string]bool{
		"id": s.ID == "", "name": s.Name == "", "example": s.Example == "", "apply": len(s.Apply) == 0, "source": len(s.Source) == 0,
	} {
		if empty {
			errs = append(errs, errors.New(what+" is missing"))
		}
	}
	for _, k := range s.Keys {
		errs = append(errs, oneOf("part", k.Part, "", "on", "idle", "interval", "probes", "user-timeout"),
			oneOf("unit", k.Unit, "", "s", "ms", "min"))
	}
	for _, glob := range s.Comm {
		if _, err := path.Match(glob, ""); err != nil {
			errs = append(errs, fmt.Errorf("comm %q: %w", glob, err))
		}
	}
	return errors.Join(errs...)
}

// recognise finds the entry of a process by its name.
func recognise(list []Software, comm string) *Software {
	for i := range list {
		for _, glob := range list[i].Comm {
			if ok, err := path.Match(glob, comm); err == nil && ok {
				return &list[i]
			}
		}
	}
	return nil
}
