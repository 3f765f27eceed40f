"""TCP_CORK set and cleared around each answer, as servers do, in ways that must not lose what the option means. Prints the same on
the kernel's stack and on another."""

import os
import select
import socket
import struct
import time

ROUNDS = 60


def pair():
    listener = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(listener.getsockname())
    # Or Nagle's algorithm waits for acknowledgments, which come sooner on the kernel's stack.
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, listener.accept()[0]


def cork(near, on):
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, on)


def take(far, count):
    got = b""
    while len(got) < count:
        more = far.recv(count - len(got))
        assert more
        got += more
    return got


def segments(far):
    """tcpi_data_segs_in."""
    return struct.unpack_from("I", far.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 152)[0]


def answers(near, far, writer=None):
    """Segments that so many answers in two parts came in."""
    before = segments(far)
    for turn in range(ROUNDS):
        cork(near, 1)
        near.sendall(b"head")
        # Sometimes the host looks in between.
        if turn % 3 == 0:
            time.sleep(.002)
        (writer or near).sendall(b"body" * 50)
        if turn % 4 == 0:
            time.sleep(.002)
        cork(near, 0)
        assert take(far, 204) == b"head" + b"body" * 50
    return segments(far) - before


def is_prompt(far):
    """Something comes before the time that corked bytes wait at most."""
    return bool(select.select([far], [], [], .15)[0])


near, far = pair()
print("segments:", answers(near, far))
print("option:", [(cork(near, on), near.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK))[1] for on in (1, 1, 0, 0, 1, 0)])

promptly = 0
for turn in range(ROUNDS):
    near.sendall(b"plain")
    cork(near, 1)
    promptly += is_prompt(far)
    take(far, 5)
    near.sendall(b"held")
    cork(near, 0)
    promptly += is_prompt(far)
    take(far, 4)
print("prompt:", promptly)

# Held bytes are held although the option was cleared and set before the host looked.
held = 0
for turn in range(20):
    for _ in range(5):
        cork(near, 1)
        cork(near, 0)
    cork(near, 1)
    time.sleep(.005)
    near.sendall(b"held")
    held += not select.select([far], [], [], .03)[0]
    cork(near, 0)
    take(far, 4)
print("held:", held)

# Another number of the socket, and another process.
other = socket.socket(fileno=os.dup(near.fileno()))
print("two numbers:", answers(near, far, other))
child = os.fork()
if child == 0:
    cork(near, 0)
    cork(near, 1)
    os._exit(0)
os.waitpid(child, 0)
print("set by a child:", near.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK))
cork(near, 0)
print("after a child:", answers(near, far), segments(far) > 0)

# Words are used again.
streams = [pair() for _ in range(20)]
for _ in range(3):
    print("many:", sum(answers(*each) for each in streams[:5]))
    for each in streams:
        cork(each[0], 1)
        cork(each[0], 0)
    streams = [pair() for _ in range(20)]

# The end lets go what is held.
near, far = pair()
answers(near, far)
cork(near, 1)
near.sendall(b"the last")
near.close()
print(far.recv(100), far.recv(100))
