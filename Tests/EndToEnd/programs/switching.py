"""TCP_NODELAY and TCP_CORK turned on and off again and again, in this process and in those that inherit the socket, with
another user's rights too: each finds what the one before has set, and corked bytes wait."""

import os
import select
import socket
import struct

listener = socket.create_server(("127.0.0.1", 0))
near = socket.create_connection(listener.getsockname())
far, _ = listener.accept()


def switch(option, value):
    near.setsockopt(socket.IPPROTO_TCP, option, value)
    return near.getsockopt(socket.IPPROTO_TCP, option)


def rounds(who):
    for option, name in ((socket.TCP_NODELAY, "no delay"), (socket.TCP_CORK, "cork")):
        print(who, name, [switch(option, value) for value in (1, 0, 1, 1, 0)], flush=True)


def child(who, user):
    process = os.fork()
    if process == 0:
        os.setresuid(user, user, user)
        rounds(who)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        os._exit(0)
    os.waitpid(process, 0)
    print("behind", who, near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


rounds("parent")
child("child", 0)
near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
child("nobody", 65534)
near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
print("too short:", end=" ")
try:
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, b"\1")
except OSError as error:
    print(error.strerror)
for turn in range(50):
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    near.sendall(b"head")
    near.sendall(b"body" * 100)
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    got = b""
    while len(got) < 404:
        got += far.recv(1000)
    assert got == b"head" + b"body" * 100
print("bytes in order; nothing else:", select.select([far], [], [], 0)[0])
near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
near.sendall(b"the last")
near.close()
print(far.recv(100), far.recv(100))
