"""Sends frames of type 0x88b5 when it is told to: for each line "HARDWARE-ADDRESS|* COUNT" written into a pipe.

usage: packet_frame.py INTERFACE PIPE
"""

import socket
import sys

interface, pipe = sys.argv[1:]
made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
made.bind((interface, 0))
while True:
    with open(pipe) as lines:
        for line in lines:
            target, count = line.split()
            address = b"\xff" * 6 if target == "*" else bytes.fromhex(target.replace(":", ""))
            for _ in range(int(count)):
                made.send(address + made.getsockname()[4] + b"\x88\xb5" + b"payload of a frame".ljust(46, b"."))
