"""Sets and reads every option of every level on sockets in various states; prints one line a call.

With an argument only the states whose names begin with it. Numbers, not names: what has no name today has one tomorrow.
"""

import ctypes
import errno
import os
import socket
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
LEVELS = {"SOL_SOCKET": (1, range(0, 84)), "IPPROTO_IP": (0, range(0, 56)), "IPPROTO_TCP": (6, range(0, 48)),
          "IPPROTO_UDP": (17, range(0, 106)), "SOL_RAW": (255, range(0, 3)), "IPPROTO_IPV6": (41, range(16, 28))}
SET = ["00000000", "01000000", "ffffffff", "02000000", "07000000", "80000000", "e8030000", "00000100", "00000040", "01", "",
       "0100", "0100000000000000", "00000000ffffffff", "7265006f", "7265", "7f000001", "0000000000000000",
       "01000000050000000000000000000000", "05000000000000000000000000000000", "05000000000000004042" + "0f000000000000",
       "e00000fb7f000001", "e00000fb0000000000000000", "6c6f00", "6c6f"]
CAPACITIES = [4, 0, 1, 2, 8, 16, 64, 300]


def name_of(error):
    return errno.errorcode.get(error, str(error))


def set_option(fd, level, number, value):
    result = libc.setsockopt(fd, level, number, ctypes.create_string_buffer(value, max(len(value), 1)), len(value))
    return "0" if result == 0 else name_of(ctypes.get_errno())


def get_option(fd, level, number, capacity):
    buffer = ctypes.create_string_buffer(b"\xee" * 320, 320)
    length = ctypes.c_uint32(capacity)
    result = libc.getsockopt(fd, level, number, buffer, ctypes.byref(length))
    if result != 0:
        return name_of(ctypes.get_errno())
    return f"{length.value}:{buffer.raw[:min(length.value, 320)].hex()}"


def tcp():
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def listener():
    made = tcp()
    made.bind(("127.0.0.1", 0))
    made.listen(4)
    return made


def connected(accepted=False):
    waiting = listener()
    made = tcp()
    made.connect(waiting.getsockname())
    other, _ = waiting.accept()
    keep.extend([waiting, made, other])
    return other if accepted else made


def udp(bind=False, connect=False):
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if bind:
        made.bind(("127.0.0.1", 0))
    if connect:
        made.connect(("127.0.0.1", 9))
    return made


STATES = {
    "tcp": tcp, "tcp-listening": listener, "tcp-connected": connected, "tcp-accepted": lambda: connected(True),
    "udp": udp, "udp-bound": lambda: udp(bind=True), "udp-connected": lambda: udp(connect=True),
    "raw": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "raw-255": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 255),
}
keep = []


def main():
    for state, make in STATES.items():
        if len(sys.argv) > 1 and not state.startswith(sys.argv[1]):
            continue
        for level, (number, options) in LEVELS.items():
            for option in options:
                made = make()
                fd = made.fileno()
                lines = [f"get/{capacity} {get_option(fd, number, option, capacity)}" for capacity in CAPACITIES]
                for value in SET:
                    done = set_option(fd, number, option, bytes.fromhex(value))
                    lines.append(f"set {value or '-'} {done}")
                    lines.append(f"then {value or '-'} {get_option(fd, number, option, 16)}")
                for line in lines:
                    print(f"{state} {level} {option} {line}")
                made.close()
                while keep:
                    keep.pop().close()


main()
