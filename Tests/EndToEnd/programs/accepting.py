"""TCP_NODELAY of streams that have just been accepted, set by whoever accepts them. Prints the same on the kernel's stack and on
another; what only another can tell goes to stderr."""

import array
import ctypes
import os
import re
import select
import socket
import struct
import sys

ROUNDS = 20
listener = socket.create_server(("127.0.0.1", 0), backlog=64)


def connected():
    near = socket.create_connection(listener.getsockname())
    return near, listener.accept()[0]


def set_no_delay(stream, on=1):
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, on)


def no_delay(stream):
    return stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def words():
    """Those that say that the option is set. None without any."""
    found = re.search(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ +/memfd:alps-option-words", open("/proc/self/maps").read())
    if not found:
        return None
    start, end = (int(each, 16) for each in found.groups())
    values = struct.unpack(f"{(end - start) // 8}Q", ctypes.string_at(start, end - start))
    return sum(value >> 63 for value in values)


def is_prompt(near, accepted):
    """No small message waits until the one before is acknowledged, which is done at once only in the beginning."""
    for _ in range(20):
        accepted.sendall(b"a")
        if not select.select([near], [], [], .02)[0]:
            return False
        assert near.recv(10) == b"a"
    return True


def child(body):
    process = os.fork()
    if process == 0:
        body()
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(process, 0)


def accept_in_child(user):
    near = socket.create_connection(listener.getsockname())
    more = socket.create_connection(listener.getsockname())

    def body():
        os.setresuid(user, user, user)
        for _ in range(2):
            accepted = listener.accept()[0]
            print("before:", no_delay(accepted), end=" ")
            set_no_delay(accepted)
            print("then:", no_delay(accepted))

    child(body)
    near.close()
    more.close()


# The first ones are set by a message.
for turn in range(3):
    set_no_delay(connected()[1])

told = []
for turn in range(ROUNDS):
    near, accepted = connected()
    set_no_delay(accepted)
    told.append(words())
    # What has been set twice, or taken back, is so too.
    if turn % 4 == 1:
        set_no_delay(accepted)
    if turn % 4 == 2:
        set_no_delay(accepted, 0)
    print(no_delay(accepted), end=" ")
    told.append(words())
    set_no_delay(accepted, turn & 1)
    print(no_delay(accepted), accepted.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR))
print("words:", told, file=sys.stderr)

prompt = 0
late = 0
for turn in range(ROUNDS):
    near, accepted = connected()
    set_no_delay(accepted)
    prompt += is_prompt(near, accepted)
    near, accepted = connected()
    late += not is_prompt(near, accepted)
print("prompt:", prompt)
print("late:", late, file=sys.stderr)

# When something has been written already, and with all of the forms of a socket: another number, another process' copy.
near, accepted = connected()
accepted.sendall(b"first")
set_no_delay(accepted)
print("written before:", no_delay(accepted), near.recv(10))
near, accepted = connected()
other = accepted.dup()
set_no_delay(other)
print("another number:", no_delay(accepted))
near, accepted = connected()
child(lambda: set_no_delay(accepted))
print("by a child:", no_delay(accepted))
near, accepted = connected()
set_no_delay(accepted)
child(lambda: print("in a child:", no_delay(accepted)))
accept_in_child(0)
accept_in_child(65534)

# Passed on to a process that has not accepted it.
ends = socket.socketpair()
near, accepted = connected()
set_no_delay(accepted)
process = os.fork()
if process == 0:
    data, ancillary, _, _ = ends[1].recvmsg(1, socket.CMSG_SPACE(4))
    passed = socket.socket(fileno=array.array("i", ancillary[0][2][:4])[0])
    print("passed on:", no_delay(passed), end=" ", flush=True)
    set_no_delay(passed, 0)
    os._exit(0)
ends[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [accepted.fileno()]))])
os.waitpid(process, 0)
print("and taken back:", no_delay(accepted))

# The peer goes first, with and without an answer.
near, accepted = connected()
near.close()
set_no_delay(accepted)
print("peer gone:", accepted.recv(10))
accepted.close()

# More than there are words for; and words are used again.
for _ in range(2):
    streams = [connected() for _ in range(2100)]
    for _, accepted in streams:
        set_no_delay(accepted)
    print("many:", sum(no_delay(accepted) for _, accepted in streams))
    for near, accepted in streams:
        near.close()
        accepted.close()
print("none left:", file=sys.stderr, end=" ")
print(words(), file=sys.stderr)
