"""Answers each line, and says with which error its connection ended."""
import errno
import socket
import sys
import threading


def serve(c):
    try:
        while data := c.recv(4096):
            c.sendall(data)
    except OSError as e:
        print("ended", errno.errorcode[e.errno], flush=True)


listener = socket.create_server(("0.0.0.0", int(sys.argv[1])))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
