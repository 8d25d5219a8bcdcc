package host

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/windows/registry"
)

// windowsRegistry is the values of one registry key.
type windowsRegistry struct {
	root registry.Key
	key  string
}

func newSystem(o Options) (system, error) {
	if o.Netns != nil {
		return nil, fmt.Errorf("network namespaces on windows: %w", errors.ErrUnsupported)
	}
	w := &windowsRegistry{root: registry.LOCAL_MACHINE, key: WindowsKey}
	if o.Registry != "" {
		w.root, w.key = registry.CURRENT_USER, o.Registry
	}
	return w, nil
}

func (*windowsRegistry) parameters() []Parameter { return windowsParameters() }

// told: the stack reads the registry when it starts, and does not tell what it
// has read.
func (*windowsRegistry) told() bool { return false }

// file: there is none besides the registry.
func (*windowsRegistry) file() (path, why string) { return "", "" }

func (w *windowsRegistry) get(name string) (value string, present bool, err error) {
	k, err := registry.OpenKey(w.root, w.key, registry.QUERY_VALUE)
	if errors.Is(err, registry.ErrNotExist) {
		return "", false, nil
	} else if err != nil {
		return "", false, fmt.Errorf("open registry key %s: %w", w.key, err)
	}
	defer func() { _ = k.Close() }()
	v, typ, err := k.GetIntegerValue(name)
	switch {
	case errors.Is(err, registry.ErrNotExist):
		return "", false, nil
	case errors.Is(err, registry.ErrUnexpectedType) || err == nil && typ != registry.DWORD:
		return "", false, fmt.Errorf("read registry value %s: not a REG_DWORD; Windows takes no other, so remove it", name)
	case err != nil:
		return "", false, fmt.Errorf("read registry value %s: %w", name, err)
	}
	return strconv.FormatUint(v, 10), true, nil
}

// open opens the key to be written to, making it where it is not there.
func (w *windowsRegistry) open() (registry.Key, error) {
	k, _, err := registry.CreateKey(w.root, w.key, registry.SET_VALUE)
	if err != nil {
		return k, fmt.Errorf("open registry key %s: %w (needs an administrator)", w.key, err)
	}
	return k, nil
}

func (w *windowsRegistry) set(name, value string) error {
	v, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return fmt.Errorf("set registry value %s: %w", name, err)
	}
	k, err := w.open()
	if err != nil {
		return err
	}
	defer func() { _ = k.Close() }()
	if err := k.SetDWordValue(name, uint32(v)); err != nil {
		return fmt.Errorf("set registry value %s: %w", name, err)
	}
	return nil
}

func (w *windowsRegistry) unset(name string) error {
	k, err := w.open()
	if err != nil {
		return err
	}
	defer func() { _ = k.Close() }()
	if err := k.DeleteValue(name); err != nil && !errors.Is(err, registry.ErrNotExist) {
		return fmt.Errorf("remove registry value %s: %w", name, err)
	}
	return nil
}

func (w *windowsRegistry) writable(string) error {
	k, err := registry.OpenKey(w.root, w.key, registry.SET_VALUE)
	if errors.Is(err, registry.ErrNotExist) {
		return nil // set makes it
	} else if err != nil {
		return fmt.Errorf("open registry key %s: %w (needs an administrator)", w.key, err)
	}
	return k.Close()
}

func (w *windowsRegistry) boot(*content) (bootView, error) {
	place := `HKLM\` + w.key
	if w.root == registry.CURRENT_USER {
		place = `HKCU\` + w.key
	}
	return bootView{reader: "the registry", winner: func(p Parameter) (Persisted, bool) {
		value, present, err := w.get(p.Name)
		if err != nil || !present {
			return Persisted{}, false
		}
		v, ok := p.parse(value)
		return Persisted{Value: v, File: place}, ok
	}}, nil
}

func (*windowsRegistry) bootID() (string, error) { return "", nil }
