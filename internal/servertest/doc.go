// Package servertest starts real servers on the hosts of a testnet, as their
// own users, on the usual ports, with their data in folders of their own, and
// ends them with the test. Linux only; needs root, and the Debian packages
// that .ci/packages names. Where something is missing the test is skipped;
// with CI set in the environment it fails.
package servertest
