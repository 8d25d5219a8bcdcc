"""Says its pid and the size of its terminal, and that again when it changes."""
import os
import signal


def size(*_):
    print(*os.get_terminal_size(), flush=True)


signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGWINCH, size)
print("pid", os.getpid(), flush=True)
size()
while True:
    signal.pause()
