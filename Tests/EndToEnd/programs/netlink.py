"""What the calls on a netlink socket do: the same over the kernel's and over ours."""

import ctypes
import fcntl
import os
import select
import socket
import struct

SOL_NETLINK, ADD_MEMBERSHIP, PKTINFO, LIST_MEMBERSHIPS = 270, 1, 3, 9
libc = ctypes.CDLL(None, use_errno=True)


def request():
    """RTM_GETLINK of the first interface."""
    return struct.pack("=IHHIIBxHiII", 32, 18, 1, 9, 0, 0, 0, 1, 0, 0)


def kind(data):
    return struct.unpack_from("=IH", data)[1]


def outcome(call):
    try:
        return call()
    except OSError as error:
        return error.errno or type(error).__name__


s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
print("nothing there", outcome(lambda: s.recv(10)))
poll = select.poll()
poll.register(s, select.POLLIN | select.POLLOUT)
print("writable", poll.poll(0)[0][1])
os.write(s.fileno(), request())
print("readable", poll.poll(1000)[0][1])
print("read", kind(os.read(s.fileno(), 4096)))

copy = os.dup(s.fileno())
os.write(copy, request())
first, rest = bytearray(16), bytearray(4000)
count = os.readv(copy, [first, rest])
print("readv of a copy", kind(first), count > 500)
os.close(copy)

s.setblocking(True)
s.settimeout(0.1)
print("time-out of the program's", outcome(lambda: s.recv(10)))
s.setblocking(True)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 100000))
print("SO_RCVTIMEO", outcome(lambda: s.recv(10)))

child = os.fork()
if child == 0:
    s.send(request())
    print("child", kind(s.recv(4096)), flush=True)
    os._exit(0)
os.waitpid(child, 0)

here, there = socket.socketpair()
socket.send_fds(here, [b"1"], [s.fileno()])
passed = socket.recv_fds(there, 1, 1)[1][0]
os.write(passed, request())
print("passed", kind(os.read(passed, 4096)))
again = socket.socket(fileno=passed)
print("what it is", again.family.name, again.proto, again.getsockname()[0] == os.getpid())

s.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
s.setsockopt(SOL_NETLINK, PKTINFO, 1)
s.send(request())
_, control, flags, name = s.recvmsg(4096, 100)
print("control messages", [(level, type, data.hex()) for level, type, data in control], flags, name)

edge = select.epoll()
edge.register(s, select.EPOLLIN | select.EPOLLET)
s.send(request())
print("edges", len(edge.poll(1)), len(edge.poll(0)))

for command in (0x541B, 0x5411, 0x890B, 0x8954, 0x8905, 0x8933, 0x8906):
    print("ioctl", hex(command), outcome(lambda: len(fcntl.ioctl(s, command, bytes(120)))))
print("name of 1", struct.unpack("16si20x", fcntl.ioctl(s, 0x8910, struct.pack("16si20x", b"", 1)))[0][:2])

group = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
group.bind((0, 0))
group.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, 1)
print("groups", group.getsockname()[1], group.getsockopt(SOL_NETLINK, LIST_MEMBERSHIPS, 8))
for level, option in ((socket.SOL_SOCKET, 9999), (SOL_NETLINK, 99), (6, 1)):
    print("option", level, option, outcome(lambda: group.getsockopt(level, option)),
          outcome(lambda: group.setsockopt(level, option, 1)))
for address in (b"\x10\0\0\0", struct.pack("=HH", 16, 0), struct.pack("=HHII", 2, 0, 0, 0)):
    for call in (libc.bind, libc.connect):
        print("address", len(address), call(group.fileno(), address, len(address)), ctypes.get_errno())
