//go:build !linux

package journal

import (
	"errors"
	"fmt"
	"os"
	"runtime"
)

func bootID() ([16]byte, error) { return [16]byte{}, unsupported() }

func startTime(int) (uint64, error) { return 0, unsupported() }

func prepareDir(string) error { return unsupported() }

func checkDir(string) error { return unsupported() }

func openFile(string, int) (*os.File, error) { return nil, unsupported() }

func tryLock(*os.File) (bool, error) { return false, unsupported() }

func unlock(*os.File) error { return errors.ErrUnsupported }

func dataSync(*os.File) error { return unsupported() }

func unsupported() error {
	return fmt.Errorf("%w on %s", errors.ErrUnsupported, runtime.GOOS)
}
