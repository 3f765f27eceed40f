"""Makes every request of ioctl(2) for sockets and interfaces, about an interface that is there and one that is not; prints
one line a request. Those that change something are made about the second only."""

import ctypes
import errno
import socket
import sys

libc = ctypes.CDLL(None, use_errno=True)
CHANGING = {0x8914, 0x8916, 0x8918, 0x891a, 0x891c, 0x891e, 0x8922, 0x8923, 0x8924, 0x8930, 0x8932, 0x8937, 0x8943, 0x8971,
            0x890b, 0x890c}


def request(fd, number, data):
    buffer = ctypes.create_string_buffer(data, 200)
    result = libc.ioctl(fd, ctypes.c_ulong(number), buffer)
    return "0" if result == 0 else errno.errorcode.get(ctypes.get_errno(), str(ctypes.get_errno()))


def main():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    connected = socket.create_connection(listener.getsockname())
    kinds = {"tcp": socket.socket(), "listening": listener, "connected": connected,
             "udp": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
             "raw": socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)}
    for kind, made in kinds.items():
        for number in [*range(0x8900, 0x89f0), 0x541b, 0x5411, 0x5421]:
            print(f"{kind} {number:#x} nobody {request(made.fileno(), number, b'nosuch0'.ljust(40, bytes(1)))}")
            if number not in CHANGING:
                print(f"{kind} {number:#x} loopback {request(made.fileno(), number, sys.argv[1].encode().ljust(40, bytes(1)))}")


main()
