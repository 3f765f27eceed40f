"""Clients that die, fork, run out of descriptors and write garbage: the host lives, and nothing is left over.

ALPS_FAULT_SECONDS lengthens the killing (600 for a long run).
"""

import os
import random
import resource
import signal
import subprocess
import time

from conftest import KERNEL, STACK

PYTHON = "/usr/bin/python3"
SECONDS = float(os.environ.get("ALPS_FAULT_SECONDS", 8))

ECHO = """
import os, selectors, socket, sys
def serve(address):
    sel = selectors.DefaultSelector(); s = socket.create_server((address, 7000), backlog=512); s.setblocking(False)
    sel.register(s, selectors.EVENT_READ); pending = {}
    while True:
        for key, events in sel.select():
            c = key.fileobj
            if c is s:
                try: c = s.accept()[0]
                except OSError: continue
                c.setblocking(False); sel.register(c, selectors.EVENT_READ); pending[c] = b""
                continue
            try:
                if events & selectors.EVENT_READ:
                    data = c.recv(65536)
                    if not data: raise OSError
                    pending[c] += data
                if pending[c]: pending[c] = pending[c][c.send(pending[c]):]
                sel.modify(c, selectors.EVENT_WRITE | (0 if len(pending[c]) > 1 << 20 else selectors.EVENT_READ)
                           if pending[c] else selectors.EVENT_READ)
            except BlockingIOError: pass
            except OSError: sel.unregister(c); del pending[c]; c.close()
serve(sys.argv[1])
"""

# A client of every kind: plain, forked with a shared socket, threaded, driven by epoll; on for as long as it lives.
CLIENTS = """
import os, random, select, socket, sys, threading, time
address, seed = sys.argv[1], int(sys.argv[2]); r = random.Random(seed)
def talk(s, n=10**9):
    for _ in range(n):
        data = os.urandom(r.randrange(1, 30000)); s.sendall(data); left = len(data)
        while left: left -= len(s.recv(left))
def connect(): return socket.create_connection((address, 7000))
kind = seed % 4
if kind == 0:
    while True:
        with connect() as s: talk(s, 3)
elif kind == 1:
    s = connect(); os.fork()
    while True: s.sendall(b"x" * 1000); s.recv(1000)
elif kind == 2:
    for _ in range(4): threading.Thread(target=lambda: talk(connect())).start()
else:
    e = select.epoll(); all = {}
    for _ in range(8):
        s = connect(); s.setblocking(False); all[s.fileno()] = s; e.register(s, select.EPOLLIN | select.EPOLLOUT)
    while True:
        for fd, events in e.poll():
            try:
                if events & select.EPOLLIN: all[fd].recv(65536)
                if events & select.EPOLLOUT: all[fd].send(b"y" * r.randrange(1, 5000))
            except BlockingIOError: pass
"""


def kill_group(child):
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def test_clients_killed_at_random_leave_nothing(stack):
    """Both ways at once: clients of the stack and servers on it die in the middle of what they do."""
    stack.spawn_outside(PYTHON, "-c", ECHO, KERNEL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.wait_listening_outside(7000)
    rng = random.Random(1)
    alive = []
    deadline = time.monotonic() + SECONDS
    started = 0
    while time.monotonic() < deadline:
        while len(alive) < 40:
            started += 1
            argv = stack.run_argv(PYTHON, "-c", CLIENTS, KERNEL, str(started))
            alive.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                          stderr=subprocess.DEVNULL, start_new_session=True))
        time.sleep(rng.uniform(0, 0.05))
        kill_group(alive.pop(rng.randrange(len(alive))))
    for child in alive:
        kill_group(child)
    assert stack.host.poll() is None
    assert started > 40
    stack.assert_nothing_left(90)


def test_servers_killed_at_random_leave_nothing(stack):
    rng = random.Random(2)
    deadline = time.monotonic() + SECONDS
    clients = [subprocess.Popen(
        stack.outside_argv("sh", "-c", f"while :; do {PYTHON} -c '{CLIENTS}' {STACK} {seed}; done"),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        for seed in range(8)]
    try:
        while time.monotonic() < deadline:
            server = stack.spawn(PYTHON, "-c", ECHO, STACK, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(rng.uniform(0.2, 1))
            kill_group(server)
            assert stack.host.poll() is None
    finally:
        for client in clients:
            kill_group(client)
    stack.assert_nothing_left(90)


def test_a_client_without_descriptors_gets_emfile(stack):
    code = """
import errno, resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
kept = []
try:
    while True: kept.append(socket.socket())
except OSError as e: print(errno.errorcode[e.errno], len(kept))
kept.clear()
socket.create_server(("", 7001)).close(); print("works again")
"""
    output = stack.run(PYTHON, "-c", code).stdout.split("\n")
    assert output[0].startswith("EMFILE ") and int(output[0].split()[1]) > 40
    assert output[1] == "works again"
    stack.assert_nothing_left()


def test_a_host_without_descriptors_refuses_and_recovers(make_stack, directory):
    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    code = """
import errno, socket
kept = []
try:
    while len(kept) < 300: kept.append(socket.socket())
except OSError as e: print(errno.errorcode[e.errno], len(kept), flush=True)
kept.clear()
import time; time.sleep(0.3)
socket.create_server(("", 7001)).close(); print("works again")
"""
    stack = make_stack(preexec=limit)
    output = stack.run(PYTHON, "-c", code).stdout.split("\n")
    assert output[0].split()[0] in ("ENFILE", "EMFILE"), output
    assert output[1] == "works again"
    assert stack.host.poll() is None
    stack.assert_nothing_left()


def test_ten_thousand_sockets_in_one_process(stack):
    code = """
import resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (10100, 10100))
server = socket.create_server(("127.0.0.1", 7000), backlog=4096)
pairs = []
for i in range(4990):
    c = socket.create_connection(("127.0.0.1", 7000)); s, _ = server.accept(); pairs.append((c, s))
for i, (c, s) in enumerate(pairs): c.sendall(b"%d" % i)
for i, (c, s) in enumerate(pairs): assert s.recv(10) == b"%d" % i
print(len(pairs))
"""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    output = stack.run(PYTHON, "-c", code, preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_NOFILE, (min(hard, 20000), hard)))
    assert output.stdout == "4990\n"
    stack.assert_nothing_left(90)


def test_garbage_in_the_pair_and_in_the_session_harms_its_owner_only(stack):
    """A client writes random bytes into every descriptor it has that is a socket, past the shim."""
    code = """
import ctypes, os, random, socket, sys
libc = ctypes.CDLL(None); r = random.Random(int(sys.argv[1]))
socks = [socket.socket() for _ in range(3)] + [socket.socket(type=socket.SOCK_DGRAM) for _ in range(3)]
socks[0].bind(("", 0)); socks[0].listen(); socks[3].bind(("", 0)); socks[4].connect(("127.0.0.1", 9))
try: socks[1].connect(socks[0].getsockname())
except OSError: pass
for _ in range(300):
    fd = r.randrange(3, 20); data = os.urandom(r.randrange(0, 300))
    # write(2) and sendto(2) by number: the shim does not see them.
    if r.random() < .5: libc.syscall(1, fd, data, len(data))
    else: libc.syscall(44, fd, data, len(data), 0x4040, None, 0)
"""
    for seed in range(12):
        subprocess.run(stack.run_argv(PYTHON, "-c", code, str(seed)), stdin=subprocess.DEVNULL, capture_output=True,
                       timeout=60)
        assert stack.host.poll() is None
    stack.assert_nothing_left(60)
    assert stack.outside("ping", "-c", 1, STACK).returncode == 0


def test_a_client_killed_with_both_directions_full_resets_its_peer(stack):
    """Neither side reads: nothing that is still to be sent may keep the dead client's connection alive."""
    peer = """
import socket, sys, time
s = socket.create_server((sys.argv[1], 7000)); c, _ = s.accept(); c.setblocking(False)
while True:
    try: c.send(bytes(65536))
    except BlockingIOError: time.sleep(.05)
    except ConnectionResetError: print("reset", flush=True); break
"""
    client = """
import socket, sys, time
s = socket.create_connection((sys.argv[1], 7000)); s.settimeout(.5)
try: s.sendall(bytes(1 << 28))
except TimeoutError: print("full", flush=True)
time.sleep(60)
"""
    outside = stack.spawn_outside(PYTHON, "-c", peer, KERNEL)
    stack.wait_listening_outside(7000)
    inside = stack.spawn(PYTHON, "-c", client, KERNEL)
    assert inside.stdout.readline() == "full\n"
    kill_group(inside)
    assert outside.communicate(timeout=5)[0] == "reset\n"
    stack.assert_nothing_left()
