"""What a program finds after a reset while there is still something for it to read: the same as on the kernel."""

import pytest

PROGRAM = """
import errno, socket, struct, sys, time
kind, size = sys.argv[1], int(sys.argv[2])
listener = socket.create_server(("127.0.0.1", 0))
here = socket.create_connection(listener.getsockname())
there = listener.accept()[0]
there.setblocking(False)
last = time.monotonic()
while time.monotonic() < last + .3:
    # All that buffers take, or one message.
    try: there.send(b"x" * size); last = time.monotonic()
    except BlockingIOError: time.sleep(.01)
    if size < 1000: break
if kind == "linger": there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
else:
    here.send(b"y")
    time.sleep(.2)
there.close()
time.sleep(.3)
told = []
for _ in range(3):
    try: told.append(here.send(b"y"))
    except OSError as error: told.append(errno.errorcode[error.errno])
got = 0
try:
    while data := here.recv(65536): got += len(data)
except OSError: pass
print(told, got > 0)
"""


@pytest.mark.parametrize("size", [10, 65536])
@pytest.mark.parametrize("kind", ["linger", "unread"])
def test_writes_fail_after_a_reset(stack, kind, size):
    argv = ("/usr/bin/python3", "-c", PROGRAM, kind, size)
    expected = stack.outside(*argv).stdout
    assert "ECONNRESET" in expected
    assert stack.run(*argv).stdout == expected
    stack.assert_nothing_left()


WAITING = """
import errno, os, socket, struct, threading, time
listener = socket.create_server(("127.0.0.1", 0))
here = socket.create_connection(listener.getsockname())
there = listener.accept()[0]
there.send(b"x" * 50)
def reset():
    time.sleep(.3)
    there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    there.close()
threading.Thread(target=reset).start()
print(len(here.recv(100, socket.MSG_WAITALL)))
try: print(os.preadv(here.fileno(), [bytearray(10)], -1))
except OSError as error: print(errno.errorcode[error.errno])
"""


def test_a_read_that_was_cut_short_by_a_reset_leaves_it_to_the_next(stack):
    argv = ("/usr/bin/python3", "-c", WAITING)
    assert stack.outside(*argv).stdout == "50\nECONNRESET\n"
    assert stack.run(*argv).stdout == "50\nECONNRESET\n"
