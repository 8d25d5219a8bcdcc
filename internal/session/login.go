package session

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
)

// complete finds the user and the password that the URL left out.
func (s *Source) complete(getenv func(string) string) error {
	home := getenv("HOME")
	switch s.engine {
	case Firebird:
		s.user = cmp.Or(s.user, getenv("ISC_USER"))
		s.setPassword(getenv("ISC_PASSWORD"))
		switch {
		case s.user == "":
			return errors.New("no user: write firebird://USER@HOST/DATABASE, or set ISC_USER")
		case s.database == "":
			return errors.New("no database: write firebird://USER@HOST//PATH/OF/DATABASE.fdb, or /ALIAS")
		}
	case PostgreSQL:
		s.user = cmp.Or(s.user, getenv("PGUSER"), getenv("USER"), "postgres")
		s.database = cmp.Or(s.database, getenv("PGDATABASE"), "postgres")
		s.setPassword(getenv("PGPASSWORD"))
		if s.inline || s.password != "" {
			return nil
		}
		b, err := readSecret(cmp.Or(getenv("PGPASSFILE"), inHome(home, ".pgpass")))
		if err != nil {
			return err
		}
		host := s.host
		if s.socket != "" {
			host = "localhost"
		}
		s.setPassword(pgpass(b, host, fmt.Sprint(s.port), s.database, s.user))
	case MySQL, MariaDB:
		s.setPassword(getenv("MYSQL_PWD"))
		if s.user == "" || !s.inline && s.password == "" {
			b, err := readSecret(inHome(home, ".my.cnf"))
			if err != nil {
				return err
			}
			user, password := mycnf(b)
			if s.user == "" || s.user == user {
				s.user = cmp.Or(s.user, user)
				s.setPassword(password)
			}
		}
		s.user = cmp.Or(s.user, getenv("USER"), "root")
	}
	return nil
}

// setPassword is for one that is not in the URL.
func (s *Source) setPassword(p string) {
	if !s.inline && s.password == "" {
		s.password = secret(p)
	}
}

func inHome(home, name string) string {
	if home == "" {
		return ""
	}
	return filepath.Join(home, name)
}

// maxSecretFile bounds the files that secrets are read from.
const maxSecretFile = 64 << 10

// readSecret reads a file that nobody but its owner may read. One that is not
// there, or has no name, is empty.
func readSecret(name string) ([]byte, error) {
	if name == "" {
		return nil, nil
	}
	b, err := ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// ReadFile reads a file that holds passwords. It refuses what is no regular
// file, what others than the owner may read or write, and what is longer than
// 64 KiB.
func ReadFile(name string) ([]byte, error) {
	f, err := openSecret(name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	defer func() { _ = f.Close() }() // it is only read
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", name, err)
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("read %s: not a regular file", name)
	}
	if err := private(st); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", name, err)
	case len(b) > maxSecretFile:
		return nil, fmt.Errorf("read %s: longer than %d bytes", name, maxSecretFile)
	}
	return b, nil
}

// URLs are the database URLs of a file: one a line, # begins a comment line.
func URLs(file []byte) (list []string) {
	for line := range strings.Lines(string(file)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			list = append(list, line)
		}
	}
	return list
}

// pgpass finds a password in a file of lines host:port:database:user:password,
// where * stands for anything and a backslash quotes (libpq, "The Password
// File").
func pgpass(file []byte, want ...string) string {
	for line := range strings.Lines(string(file)) {
		line = strings.TrimRight(line, "\r\n")
		if strings.HasPrefix(line, "#") {
			continue
		}
		fields := []string{""}
		quoted := false
		for i := range len(line) {
			last := len(fields) - 1
			switch c := line[i]; {
			case !quoted && c == '\\':
				quoted = true
				continue
			case !quoted && c == ':' && last < len(want):
				fields = append(fields, "")
			default:
				fields[last] += string([]byte{c})
			}
			quoted = false
		}
		if len(fields) != len(want)+1 {
			continue
		}
		match := true
		for i, w := range want {
			match = match && (fields[i] == "*" || fields[i] == w)
		}
		if match {
			return fields[len(want)]
		}
	}
	return ""
}

// mycnf gives user and password of the client sections of an option file
// (MariaDB, "Configuring MariaDB with Option Files").
func mycnf(file []byte) (user, password string) {
	section := ""
	scanner := bufio.NewScanner(bytes.NewReader(file))
	scanner.Buffer(nil, maxSecretFile+1)
	for scanner.Scan() {
		line := strings.TrimSpace(scanner.Text())
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[':
			section = strings.Trim(line, "[] \t")
		case section == "client" || section == "client-mariadb" || section == "mysql" || section == "mariadb-client":
			name, value, _ := strings.Cut(line, "=")
			value = strings.TrimSpace(value)
			if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
				value = value[1 : n-1]
			}
			switch strings.TrimSpace(name) {
			case "user":
				user = value
			case "password":
				password = value
			}
		}
	}
	return user, password
}
