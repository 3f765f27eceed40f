"""Sends and receives frames in every way of a packet socket and prints what happens; the same on the kernel and on the stack.

usage: packets.py INTERFACE PIPE    at the other end of the pipe is packet_frame.py, on the other side of the interface
"""

import ctypes
import errno
import select
import socket
import struct
import sys

interface, pipe = sys.argv[1:]
SO_TIMESTAMP, PACKET_AUXDATA, SO_ATTACH_FILTER = 29, 8, 26
SOL_PACKET, TYPE, ALL = 263, 0x88B5, 3
index = socket.if_nametoindex(interface)


def attempt(what, call, *arguments):
    try:
        result = call(*arguments)
    except OSError as error:
        result = errno.errorcode[error.errno]
    print(what, "->", result)
    return result


def open_socket(kind=socket.SOCK_RAW, protocol=ALL, bound=True):
    made = socket.socket(socket.AF_PACKET, kind, socket.htons(protocol))
    made.settimeout(10)
    if bound:
        made.bind((interface, 0))
    return made


def named(name):
    """A received name without what differs between two interfaces."""
    return name[0] == interface, hex(name[1]), name[2], name[3], len(name[4])


def receive(made, kind=TYPE):
    """The next frame of the type."""
    while True:
        frame, name = made.recvfrom(70000)
        if name[1] == kind:
            return frame, name


def arrive(mac="*", count=1):
    """The other side sends."""
    with open(pipe, "w") as line:
        line.write(f"{mac} {count}\n")


raw = open_socket()
mac = raw.getsockname()[4]
other = b"\x02\x00\x00\x00\x00\x77"


def frame(target, payload, kind=TYPE):
    return target + mac + struct.pack("!H", kind) + payload


# Names and calls that packet sockets do not have.
fresh = open_socket(bound=False)
print(fresh.getsockname())
print(named(raw.getsockname()), raw.getsockname()[1])
attempt("getpeername", raw.getpeername)
attempt("connect", raw.connect, (interface, 0))
attempt("listen", raw.listen, 1)
attempt("shutdown", raw.shutdown, socket.SHUT_RD)
attempt("bind to nothing", lambda: fresh.bind(("none0", 0)))

# Sending, and its errors. The frames are seen by another socket, not by their sender.
watcher = open_socket()
attempt("send", raw.send, frame(other, b"x" * 46))
got, name = receive(watcher)
print(got[14:] == b"x" * 46, named(name))
raw.setblocking(False)
attempt("own frames", raw.recv, 100)
raw.settimeout(10)
attempt("send unbound", fresh.send, frame(other, b"x"))
attempt("sendto unbound", fresh.sendto, frame(other, b"y"), (interface, TYPE))
print(receive(watcher)[0][14:])
attempt("too short", raw.send, b"x" * 13)
attempt("header only", raw.send, frame(other, b""))
print(len(receive(watcher)[0]))
attempt("largest", raw.send, frame(other, b"z" * 1500))
print(len(receive(watcher)[0]))
attempt("too large", raw.send, frame(other, b"z" * 1501))
attempt("with a tag", raw.send, frame(other, b"\0\1\x88\xb5" + b"z" * 1500, 0x8100))
cooked = open_socket(socket.SOCK_DGRAM, TYPE)
attempt("cooked without a name", cooked.send, b"c")
attempt("cooked", cooked.sendto, b"cooked", (interface, 0x88B6, 0, 0, other))
got, name = receive(watcher, 0x88B6)
print(got[:6] == other, got[6:12] == mac, got[12:14].hex(), got[14:], named(name))
attempt("sendmsg", raw.sendmsg, [frame(other, b""), b"in ", b"parts"])
print(receive(watcher)[0][14:])

# Receiving: what arrives, by kind of address.
for target, word in ((mac, mac.hex(":")), (b"\xff" * 6, "*"), (b"\x01\x00\x5e\x00\x00\x05", "01:00:5e:00:00:05"),
                     (other, other.hex(":"))):
    arrive(word)
    got, name = receive(watcher)
    payload, cooked_name = cooked.recvfrom(100)
    print(got[:6] == target, named(name), payload == got[14:], named(cooked_name))
raw.close()

# Parts of a frame.

lean = open_socket(protocol=TYPE)
arrive()
print(select.select([lean], [], [], 10)[0] == [lean])
print(lean.recv(20, socket.MSG_PEEK)[14:], lean.recv(20)[14:])
arrive()
view = bytearray(20)
print(lean.recv_into(view, 20, socket.MSG_TRUNC | socket.MSG_PEEK), lean.recv_into(view, 20, socket.MSG_TRUNC), view[14:])
lean.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
lean.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
arrive()
data, control, flags, name = lean.recvmsg(20, 200)
print(len(data), flags == socket.MSG_TRUNC, sorted((level, kind, len(part)) for level, kind, part in control))
for level, kind, part in control:
    if level == SOL_PACKET:
        status, length, here, link, network = struct.unpack_from("IIIHH", part)
        print(status & 1, length, link, network)
lean.setblocking(False)
attempt("MSG_OOB", lean.recv, 10, socket.MSG_OOB)
lean.settimeout(10)

# Filters.
def attach(made, *instructions):
    code = b"".join(struct.pack("HBBI", *each) for each in instructions)
    buffer = ctypes.create_string_buffer(code, max(len(code), 1))
    program = struct.pack("HxxxxxxQ", len(instructions), ctypes.addressof(buffer))
    return made.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


accept, reject = (6, 0, 0, 0xFFFF), (6, 0, 0, 0)
attempt("filter", attach, lean, (0x30, 0, 0, 14), (0x15, 0, 1, ord("p")), (6, 0, 0, 17), reject)
arrive()
print(lean.recv(100)[14:])
attempt("none of it", attach, lean, reject)
arrive()
receive(watcher)
lean.setblocking(False)
attempt("filtered", lean.recv, 10)
attempt("no end", attach, lean, (0, 0, 0, 1))
attempt("empty", attach, lean)
attempt("detach", lean.setsockopt, socket.SOL_SOCKET, 27, 0)
attempt("detach again", lean.setsockopt, socket.SOL_SOCKET, 27, 0)
attempt("lock", lean.setsockopt, socket.SOL_SOCKET, 44, 1)
attempt("attach to a locked one", attach, lean, accept)
attempt("unlock", lean.setsockopt, socket.SOL_SOCKET, 44, 0)

# Options, with values in and out of their ranges.
mreq = struct.pack("IHH8s", index, 1, 0, b"")
for number in range(0, 26):
    made = open_socket()
    for value in (0, 1, 2, 3, -1):
        # The rest of these is in packet_ring.py.
        if number not in (5, 13, 18, 24):
            attempt(f"set {number} {value}", made.setsockopt, SOL_PACKET, number, value)
        if number != 6:
            attempt(f"get {number}", made.getsockopt, SOL_PACKET, number)
        attempt(f"get {number} long", lambda: len(made.getsockopt(SOL_PACKET, number, 64)))
    attempt(f"set {number} short", made.setsockopt, SOL_PACKET, number, b"\1")
    made.close()
made = open_socket()
for kind, address, where in ((1, b"", index), (0, other, index), (0, b"\1", index), (3, other, index), (2, b"", index),
                             (9, b"", index), (1, b"", 4711)):
    value = struct.pack("IHH8s", where, kind, len(address), address)
    attempt(f"leave {kind}", made.setsockopt, SOL_PACKET, 2, value)
    attempt(f"join {kind}", made.setsockopt, SOL_PACKET, 1, value)
    attempt(f"join {kind} again", made.setsockopt, SOL_PACKET, 1, value)
    attempt(f"leave {kind}", made.setsockopt, SOL_PACKET, 2, value)
for name in ("SO_TYPE", "SO_DOMAIN", "SO_PROTOCOL", "SO_ERROR", "SO_ACCEPTCONN", "SO_REUSEADDR",
             "SO_BROADCAST", "SO_PRIORITY", "SO_MARK", "SO_RCVBUF", "SO_SNDBUF"):
    attempt(name, made.getsockopt, socket.SOL_SOCKET, getattr(socket, name))
made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4000)
attempt("SO_RCVBUF", made.getsockopt, socket.SOL_SOCKET, socket.SO_RCVBUF)
attempt("SO_KEEPALIVE of TCP", made.setsockopt, socket.IPPROTO_TCP, 4, 1)
attempt("SOCK_STREAM", socket.socket, socket.AF_PACKET, socket.SOCK_STREAM, 0)

# Frames are counted, and lost when nobody reads.
made.close()
made = open_socket(protocol=TYPE)
made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2000)
arrive()
print(select.select([made], [], [], 10)[0] == [made])
print(struct.unpack("II", made.getsockopt(SOL_PACKET, 6, 8)), struct.unpack("II", made.getsockopt(SOL_PACKET, 6, 8)))
arrive(count=60)
seen, lost = struct.unpack("II", made.getsockopt(SOL_PACKET, 6, 8))
while seen < 60:
    more, gone = struct.unpack("II", made.getsockopt(SOL_PACKET, 6, 8))
    seen, lost = seen + more, lost + gone
print(seen, 0 < lost < 60)
