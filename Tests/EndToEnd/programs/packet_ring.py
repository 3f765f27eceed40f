"""Rings of packet sockets (packet_mmap) and what poll, select and epoll say of them; the same on the kernel and on the stack.

usage: packet_ring.py INTERFACE
"""

import ctypes
import errno
import mmap
import os
import select
import socket
import struct
import sys
import time

interface = sys.argv[1]
SOL_PACKET, TYPE, RX_RING, TX_RING, VERSION, STATISTICS = 263, 0x88B5, 5, 13, 10, 6
TARGET = b"\x02\x00\x00\x00\x00\x77"


def attempt(what, call, *arguments):
    try:
        result = call(*arguments)
    except OSError as error:
        result = errno.errorcode[error.errno]
    print(what, "->", result)


sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
sender.bind((interface, 0))
mac = sender.getsockname()[4]


def send(payload):
    sender.send(TARGET + mac + struct.pack("!H", TYPE) + payload.ljust(46, b"."))


def open_ring(version, request, option=RX_RING):
    # All frames: what is sent is not shown to sockets of a single type.
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    made.setsockopt(SOL_PACKET, VERSION, version - 1)
    # Only frames of the type: others may be about.
    code = b"".join(struct.pack("HBBI", *each) for each in
                    ((0x28, 0, 0, 12), (0x15, 0, 1, TYPE), (6, 0, 0, 0xFFFF), (6, 0, 0, 0)))
    buffer = ctypes.create_string_buffer(code)
    made.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxQ", 4, ctypes.addressof(buffer)))
    made.setsockopt(SOL_PACKET, option, struct.pack(f"{len(request)}I", *request))
    made.bind((interface, 3 if option == RX_RING else 0))
    size = request[0] * request[1]
    return made, mmap.mmap(made.fileno(), size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def word(memory, place):
    return struct.unpack_from("I", memory, place)[0]


def give(memory, place):
    struct.pack_into("I", memory, place, 0)


def ready(made, wait=0):
    """What the three say, which must be one."""
    polled = select.poll()
    polled.register(made, select.POLLIN)
    with select.epoll() as epoll:
        epoll.register(made, select.EPOLLIN)
        told = (bool(polled.poll(wait)), bool(select.select([made], [], [], wait / 1000)[0]), bool(epoll.poll(wait / 1000)))
    assert len(set(told)) == 1, told
    return told[0]


# Slots.
for version in (1, 2):
    made, memory = open_ring(version, (4096, 2, 2048, 4))
    print("version", version, "empty", ready(made, 20))
    send(b"one")
    print("filled", ready(made, 10000), ready(made), ready(made))
    place = 16 if version == 1 else 12
    length = 8 if version == 1 else 4
    begin, network = struct.unpack_from("HH", memory, place)
    print(word(memory, 0) & 1, word(memory, length), word(memory, length + 4), begin, network, memory[begin + 14:begin + 17])
    family, protocol, index, kind, direction, size = struct.unpack_from("HHiHBB", memory, 32)
    print(family, hex(protocol), index == socket.if_nametoindex(interface), kind, direction, size, memory[44:50] == mac)
    now = time.time()
    print(abs(now - struct.unpack_from("I", memory, place + 4)[0]) < 30)
    give(memory, 0)
    print("given back", ready(made, 20), ready(made))
    made.setblocking(False)
    attempt("nothing to read", made.recv, 100)
    for round in range(3):
        send(b"again")
        print("filled", ready(made, 10000))
        # A read in between takes no readiness away.
        attempt("nothing to read", made.recv, 100)
        print("still", ready(made, 1000))
        give(memory, 2048 * (round + 1))
        print("given back", ready(made, 20))
    # A full ring: the last of four slots is not given back.
    for _ in range(6):
        send(b"many")
    print([word(memory, 2048 * slot) & 1 for slot in range(4)], ready(made))
    for slot in (0, 1, 2):
        give(memory, 2048 * slot)
    print("last kept", ready(made))
    give(memory, 2048 * 3)
    print("all given back", ready(made, 20))
    print(struct.unpack("II", made.getsockopt(SOL_PACKET, STATISTICS, 8)))
    attempt("another ring", made.setsockopt, SOL_PACKET, RX_RING, struct.pack("4I", 4096, 2, 2048, 4))
    attempt("none, but mapped", made.setsockopt, SOL_PACKET, RX_RING, struct.pack("4I", 0, 0, 0, 0))
    attempt("another version", made.setsockopt, SOL_PACKET, VERSION, 2)
    memory.close()
    attempt("none", made.setsockopt, SOL_PACKET, RX_RING, struct.pack("4I", 0, 0, 0, 0))
    # Frames come by recv again.
    send(b"by recv")
    print(ready(made, 10000), made.recv(100)[14:21])
    made.close()

# Edge-triggered: one event a change.
made, memory = open_ring(2, (4096, 2, 2048, 4))
with select.epoll() as epoll:
    epoll.register(made, select.EPOLLIN | select.EPOLLET)
    epoll.poll(0.02)
    for slot in range(4):
        send(b"edge")
        print("edge", len(epoll.poll(10)), len(epoll.poll(0.05)))
made.close()
memory.close()

# What a slot cuts can be had whole.
made, memory = open_ring(2, (4096, 1, 256, 16))
attempt("PACKET_COPY_THRESH", made.setsockopt, SOL_PACKET, 7, 1)
send(b"long" * 300)
print("cut", ready(made, 10000), word(memory, 0) & 3, word(memory, 4), word(memory, 8))
made.setblocking(False)
print(len(made.recv(4000)))
attempt("nothing more", made.recv, 4000)
give(memory, 0)
print("given back", ready(made, 20))
made.close()
memory.close()

# Two processes, one ring.
made, memory = open_ring(2, (4096, 2, 2048, 4))
child = os.fork()
if child == 0:
    polled = select.poll()
    polled.register(made, select.POLLIN)
    told = bool(polled.poll(10000))
    os._exit(0 if told and memory[66 + 14:66 + 19] == b"child" else 1)
send(b"child")
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
made.close()
memory.close()

# Blocks.
made, memory = open_ring(3, (4096, 3, 2048, 6, 60, 0, 0))
print("version 3 empty", ready(made, 20))
begun = time.monotonic()
send(b"block one")
print("handed over", ready(made, 10000), time.monotonic() - begun > 0.005)
version, private, status, count, first, length, sequence = struct.unpack_from("IIIIIIQ", memory, 0)
print(version, private, status & 1, count, first, sequence)
print(struct.unpack_from("I", memory, first)[0], struct.unpack_from("II", memory, first + 12),
      struct.unpack_from("HH", memory, first + 24), memory[first + 82 + 14:first + 82 + 23])
give(memory, 8)
print("given back", ready(made, 20))
for round in range(7):
    send(b"block")
    print("handed over", ready(made, 10000))
    give(memory, 4096 * ((round + 1) % 3) + 8)
    print("given back", ready(made, 20))
print(struct.unpack("III", made.getsockopt(SOL_PACKET, STATISTICS, 12)))
made.close()
memory.close()

# Sending from a ring.
watcher = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
watcher.bind((interface, 0))
watcher.settimeout(10)


def receive():
    while True:
        got, name = watcher.recvfrom(70000)
        if name[1] == TYPE:
            return got[14:]


for version in (1, 2, 3):
    made, memory = open_ring(version, (4096, 2, 2048, 4, *((0, 0, 0) if version == 3 else ())), TX_RING)
    status, length, data = ((0, 8, 32), (0, 4, 32), (20, 16, 48))[version - 1]
    for slot in range(2):
        frame = TARGET + mac + struct.pack("!H", TYPE) + f"from a ring {slot}".encode().ljust(46, b".")
        memory[2048 * slot + data:2048 * slot + data + len(frame)] = frame
        struct.pack_into("I", memory, 2048 * slot + length, len(frame))
        struct.pack_into("I", memory, 2048 * slot + status, 1)
    attempt("send", made.send, b"")
    print(receive()[:13], receive()[:13])
    deadline = time.monotonic() + 10
    while word(memory, status) & 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    print([word(memory, 2048 * slot + status) & 7 for slot in range(2)])
    made.close()
    memory.close()

# What is refused.
made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
attempt("no ring to map", lambda: mmap.mmap(made.fileno(), 4096))
for version, request in ((1, (4095, 1, 2048, 1)), (1, (4096, 1, 2040, 2)), (1, (4096, 1, 2048, 3)), (1, (4096, 0, 2048, 2)),
                         (1, (4096, 1, 32, 128)), (1, (0, 1, 2048, 2)), (2, (4096, 1)), (2, (0x80000000, 1, 2048, 1)),
                         (3, (4096, 1, 2048, 2)), (3, (4096, 1, 2048, 2, 0, 4096, 0)), (1, (0, 0, 0, 0))):
    made.setsockopt(SOL_PACKET, VERSION, version - 1)
    attempt(f"{version} {request}", made.setsockopt, SOL_PACKET, RX_RING, struct.pack(f"{len(request)}I", *request))
made.setsockopt(SOL_PACKET, VERSION, 1)
made.setsockopt(SOL_PACKET, RX_RING, struct.pack("4I", 4096, 2, 2048, 4))
attempt("half of it", lambda: mmap.mmap(made.fileno(), 4096))
attempt("from the middle", lambda: mmap.mmap(made.fileno(), 4096, offset=4096))
attempt("another version", made.setsockopt, SOL_PACKET, VERSION, 0)
attempt("a reserve", made.setsockopt, SOL_PACKET, 12, 4)
attempt("loss", made.setsockopt, SOL_PACKET, 14, 1)
for version in (-1, 0, 1, 2, 3):
    # PACKET_HDRLEN asks about the version that is in the buffer.
    libc = ctypes.CDLL(None, use_errno=True)
    value, length = ctypes.c_int(version), ctypes.c_uint(4)
    status = libc.getsockopt(made.fileno(), SOL_PACKET, 11, ctypes.byref(value), ctypes.byref(length))
    print("header", version, status, value.value if status == 0 else errno.errorcode[ctypes.get_errno()])

# Groups of sockets.
def fanout(identifier, mode, flags=0):
    member = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    member.bind((interface, 3))
    member.setblocking(False)
    attempt(f"join {identifier} {mode} {flags:x}", member.setsockopt, SOL_PACKET, 18, identifier | mode << 16 | flags << 16)
    return member


members = [fanout(77, 1), fanout(77, 1)]
fanout(77, 0)
fanout(78, 9)
attempt("twice", members[0].setsockopt, SOL_PACKET, 18, 77 | 1 << 16)
attempt("which", members[0].getsockopt, SOL_PACKET, 18)
for _ in range(20):
    send(b"shared")


def count(member):
    found = 0
    while True:
        try:
            found += member.recv(100)[12:14] == struct.pack("!H", TYPE)
        except BlockingIOError:
            return found


deadline = time.monotonic() + 10
counts = [0, 0]
while sum(counts) < 20 and time.monotonic() < deadline:
    counts = [had + count(member) for had, member in zip(counts, members)]
print(sum(counts))
