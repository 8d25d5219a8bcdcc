"""Answers each line, and says what its connection had when it was accepted and
with which error it ended."""
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
    c = listener.accept()[0]
    print("accepted", c.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
          *(c.getsockopt(socket.IPPROTO_TCP, o) for o in (4, 5, 6)), flush=True)
    threading.Thread(target=serve, args=(c,), daemon=True).start()
