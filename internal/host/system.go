package host

// system is what differs between operating systems.
type system interface {
	// parameters lists what there is, in the order it is shown.
	parameters() []Parameter
	// get reads a value as it is kept, as text; present is false where the
	// system keeps none and goes by its default.
	get(name string) (value string, present bool, err error)
	// set writes a value. It is in force when set returns, or, where told is
	// false, after a reboot.
	set(name, value string) error
	// unset removes a value where there may be none.
	unset(name string) error
	// writable returns the error that set would meet for want of rights, and
	// changes nothing.
	writable(name string) error
	// told reports whether get tells what is in force now.
	told() bool
	// file is the one that Set writes for the next boot, "" where set does that
	// already, or where the system reads none. why says so then, for people.
	file() (path, why string)
	// boot gives what the next boot will set, if the file had the content given:
	// nil leaves it as it is.
	boot(file *content) (bootView, error)
	// bootID tells one boot from the next, "" where values do not end with it.
	bootID() (string, error)
}

// content is a file's, or that there is none.
type content struct {
	bytes  []byte
	absent bool
}

// bootView is what the files say.
type bootView struct {
	reader string // the program that reads them at boot
	other  string // another that may; "" for none
	winner func(p Parameter) (w Persisted, ok bool)
	second func(p Parameter) (w Persisted, ok bool) // as other reads them; nil without
}
