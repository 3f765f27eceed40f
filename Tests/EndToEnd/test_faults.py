"""Clients that die, fork, run out of descriptors and write garbage: the host lives, and nothing is left over.

ALPS_FAULT_SECONDS lengthens the killing.
"""

import os
import random
import resource
import subprocess
import time

import pytest

from conftest import ALPS, KERNEL, STACK, wait_until
from killing import ECHO, compile, descriptors, kill_at_random, kill_group

PYTHON = "/usr/bin/python3"
SECONDS = float(os.environ.get("ALPS_FAULT_SECONDS", 8))

# Clients on the kernel's side.
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


def test_clients_killed_at_random_leave_nothing(stack, directory):
    """A short form of apps/test_killing.py."""
    figures = kill_at_random(stack, directory, SECONDS, clients=40, seed=1)
    assert figures["killed"] > 40
    assert figures["bystander"] > 0


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


def test_a_client_without_descriptors_leaves_connections_in_the_queue(stack):
    """accept fails before it takes a connection, as on Linux: it is there when a descriptor is free again."""
    code = """
import errno, os, resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
server = socket.create_server(("127.0.0.1", 0), backlog=128)
clients = [socket.create_connection(server.getsockname()) for _ in range(8)]
for i, c in enumerate(clients): c.sendall(b"%d" % i)
kept = []
try:
    while True: kept.append(os.dup(0))
except OSError as e: print(errno.errorcode[e.errno])
for _ in range(3):
    try: server.accept()
    except OSError as e: print(errno.errorcode[e.errno])
for fd in kept: os.close(fd)
print([server.accept()[0].recv(10) for _ in clients] == [b"%d" % i for i in range(8)])
"""
    assert stack.run(PYTHON, "-c", code).stdout.split("\n")[:-1] == ["EMFILE"] * 4 + ["True"]
    stack.assert_nothing_left()


def limit():
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))


def test_a_host_without_descriptors_refuses_and_recovers(make_stack, directory):
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
    assert output[0].split()[0] == "ENFILE", output
    assert output[1] == "works again"
    assert stack.host.poll() is None
    stack.assert_nothing_left()


def test_a_host_without_descriptors_loses_connections_and_sessions_only(make_stack, directory):
    """Connections that come while none is left, and processes that want a session; afterwards all is as before."""
    stack = make_stack(preexec=limit)
    before = descriptors(stack.host.pid)
    server = stack.spawn(PYTHON, "-uc", ECHO, "")
    stack.wait_listening(7000)
    stack.outside(PYTHON, "-c", f"""
import socket
kept = []
for _ in range(200):
    s = socket.socket(); s.setblocking(False); s.connect_ex(("{STACK}", 7000)); kept.append(s)
    try: s.send(b"keep")
    except OSError: pass
import time; time.sleep(1)
for s in kept:
    try: s.send(b"keep")
    except OSError: pass
time.sleep(1)
""")
    clients = [stack.spawn(PYTHON, "-c", "import socket; socket.socket(); input()", stdin=subprocess.PIPE) for _ in range(20)]
    for client in clients:
        client.communicate("\n", timeout=60)
    assert stack.host.poll() is None
    echo = f"""
import socket
s = socket.create_connection(("{STACK}", 7000), 5); s.sendall(b"echo"); assert s.recv(4) == b"echo"
"""
    wait_until(lambda: stack.outside(PYTHON, "-c", echo, check=False).returncode == 0, 30, "the server's answer")
    assert stack.run(PYTHON, "-c", "import socket; socket.socket(); print('works')").stdout == "works\n"
    kill_group(server)
    stack.assert_nothing_left(60)
    wait_until(lambda: descriptors(stack.host.pid) <= before + 2, 10, "descriptors given back")


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


def test_a_bounded_fork_bomb_shares_sockets(stack, directory):
    """256 processes use the same listener, connection and datagram socket at once, and end in all sorts of ways."""
    bomb = compile(directory, "bomb")
    for _ in range(2):
        assert stack.run(bomb, 8).stdout.split("\n")[:-1] == ["all have ended: 1", "datagram: 1", "stream: 1"]
    assert stack.host.poll() is None
    stack.assert_nothing_left(60)


@pytest.mark.parametrize("options", [[], ["-static"]], ids=["preloaded", "static"])
def test_sockets_go_to_other_programs_and_come_back(stack, directory, options):
    """By SCM_RIGHTS, to a program with the shim and to a static one that has none."""
    program = compile(directory, "strangers")
    (directory / "other").mkdir()
    other = compile(directory / "other", "strangers", *options)
    expected = stack.outside(program, other).stdout.splitlines()
    assert len(expected) > 10
    assert stack.run(program, other).stdout.splitlines() == expected
    stack.assert_nothing_left()


def test_descriptors_in_pairs_do_not_keep_them_open(stack, directory):
    """A client's own end inside its pair: nothing but the host's looking would ever tell that the client is gone."""
    program = compile(directory, "selfheld")
    for step in range(3):
        assert stack.run(program, step).stdout == "passed: 1\n"
        assert stack.host.poll() is None
        stack.assert_nothing_left()


def test_garbage_in_options_pairs_and_session(stack, directory):
    """Random options, requests, addresses, control messages, bytes and frames, on sockets of every kind."""
    garbage = compile(directory, "garbage")
    ended = 0
    for seed in range(1, 13):
        result = subprocess.run(["timeout", "-s", "KILL", "30", *stack.run_argv(garbage, seed, 8000)],
                                stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert stack.host.poll() is None, (seed, stack.log.read_text()[-4000:])
        # One that has cut into its own session may wait for answers that it has thrown away.
        assert result.returncode in (0, -9, 137), (seed, result)
        ended += result.stdout == "end\n"
    assert ended >= 6
    stack.assert_nothing_left(60)
    assert stack.outside("ping", "-c", 1, STACK).returncode == 0
    assert stack.run(PYTHON, "-c", "import socket; socket.create_server(('', 7001)); print('works')").stdout == "works\n"


def test_garbage_from_a_static_program_under_supervision(stack, directory):
    """The same by way of the supervisor of `alps run --strict`, which reads the memory of the program it serves."""
    garbage = compile(directory, "garbage", "-static")
    for seed in range(1, 5):
        argv = [ALPS, "run", "--strict", "--socket", stack.socket, "--", garbage, str(seed), "1000"]
        result = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        assert (result.returncode, result.stdout) == (0, "end\n"), (seed, result)
        assert stack.host.poll() is None, (seed, stack.log.read_text()[-4000:])
    stack.assert_nothing_left(60)


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
