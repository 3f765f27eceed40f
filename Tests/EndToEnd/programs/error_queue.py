"""What IP_RECVERR tells of datagrams that came to nothing, a line a fact: the same on every stack.

error_queue.py CLOSED FAR: an address with no server on port 9, and one behind a router.
"""

import errno
import select
import socket
import struct
import sys

CLOSED, FAR = sys.argv[1], sys.argv[2]
IP_RECVERR, ERRQUEUE = 11, socket.MSG_ERRQUEUE


def events(mask):
    return "|".join(name for name in ("POLLIN", "POLLERR", "POLLHUP") if mask & getattr(select, name)) or "nothing"


def wait(s, timeout=5000, mask=select.POLLIN):
    poll = select.poll()
    poll.register(s, mask)
    return events(dict(poll.poll(timeout)).get(s.fileno(), 0))


def describe(s):
    try:
        data, control, flags, address = s.recvmsg(2048, 1024, ERRQUEUE)
    except OSError as error:
        return errno.errorcode[error.errno]
    text = [f"{len(data)} bytes for {address}", "ERRQUEUE" if flags & ERRQUEUE else "no flag"]
    for level, kind, value in control:
        if (level, kind) == (socket.IPPROTO_IP, IP_RECVERR):
            number, origin, type_, code, _, info, _ = struct.unpack("IBBBBII", value[:16])
            family, offender = struct.unpack("H2x4s", value[16:24])
            text.append(f"{errno.errorcode[number]} origin {origin} type {type_} code {code} "
                        f"from {socket.inet_ntoa(offender) if family else None}")
        else:
            text.append(f"control {level} {kind}")
    return ", ".join(text)


def again(call, *arguments):
    try:
        return call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]


def datagram():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setblocking(False)
    return s


s = datagram()
print("an empty queue:", describe(s))
s.connect((CLOSED, 9))
s.send(b"without the option")
print("poll without the option:", wait(s))
print("recv tells it once:", again(s.recv, 100), again(s.recv, 100))
s.close()

s = datagram()
s.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
s.connect((CLOSED, 9))
s.send(b"hello")
print("poll of a connected one:", wait(s))
print("the error:", describe(s))
print("and then:", describe(s), wait(s, 0), again(s.recv, 100))
s.send(b"once more")
print("poll again:", wait(s))
print("recv first:", again(s.recv, 100), again(s.recv, 100))
print("the error is there still:", describe(s))
print("SO_ERROR:", s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), wait(s, 0))
s.close()

s = datagram()
s.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
s.setsockopt(socket.SOL_SOCKET, 29, 1)  # SO_TIMESTAMP
s.sendto(b"from an unconnected one", (CLOSED, 9))
print("poll of an unconnected one:", wait(s))
print("the error:", describe(s))
s.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
s.sendto(b"as far as the router", (FAR, 33434))
print("poll with a TTL of 1:", wait(s))
print("the error:", describe(s))
own = datagram()
own.bind(("127.0.0.1", 0))
s.close()

# Data in front of an error, and behind.
s = datagram()
s.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
s.bind(("127.0.0.1", 0))
own.sendto(b"data", s.getsockname())
print("poll of data:", wait(s))
s.sendto(b"x", ("127.0.0.1", 9))
while True:
    found = describe(s)
    if found != "EAGAIN":
        break
print("the error behind them:", found)
print("the data:", s.recv(100), "then", wait(s, 0), again(s.recv, 100))
own.sendto(b"more", s.getsockname())
print("more:", wait(s), s.recv(100))
s.sendto(b"x", ("127.0.0.1", 9))
print("select:", [bool(each) for each in select.select([s], [], [], 5)])
s.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 0)
print("turned off:", describe(s))
s.close()

s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
s.setblocking(False)
s.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
s.setsockopt(255, 1, struct.pack("I", 0xffffffff))  # ICMP_FILTER: nothing
s.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
s.sendto(struct.pack("!BBHHH", 8, 0, 0xf7fd, 1, 1), (FAR, 0))
print("a raw one:", wait(s))
print("the error:", describe(s))
