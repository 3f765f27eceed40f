"""Clients of every kind that are killed at random, and what must hold meanwhile and afterwards."""

import os
import pathlib
import random
import signal
import subprocess
import time

from conftest import KERNEL

PROGRAMS = pathlib.Path(__file__).parent / "programs"

ECHO = """
import selectors, socket, sys
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

# What dies beside it must not touch it: all that it sends over lo0 comes back as it was, and new connections can be had.
# (The interface to the outside may lose packets for minutes while hundreds of processes want the processor.)
BYSTANDER = """
import os, socket, threading, time
def serve(c):
    with c:
        while data := c.recv(65536): c.sendall(data)
def accept():
    while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
listener = socket.create_server(("127.0.0.1", 0), backlog=16); threading.Thread(target=accept, daemon=True).start()
total = 0
while True:
    with socket.create_connection(listener.getsockname(), 60) as s:
        for _ in range(50):
            data = os.urandom(20000); s.sendall(data); back = b""
            while len(back) < len(data):
                part = s.recv(65536)
                assert part, "the connection has ended"
                back += part
            assert back == data, "other bytes came back"
            total += len(data); print(total, flush=True); time.sleep(.05)
"""


def compile(directory, name, *options):
    path = directory / name
    subprocess.run(["cc", "-O2", "-w", "-pthread", "-o", path, PROGRAMS / f"{name}.c", *options], check=True)
    return path


def kill_group(child):
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def memory(pid):
    """Resident memory in KiB."""
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1])


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def kill_at_random(stack, directory, seconds, clients, seed):
    """Keeps that many clients alive, and kills one after another, whole or its first process only. Returns figures."""
    restless = compile(directory, "restless")
    stack.spawn_outside("/usr/bin/python3", "-c", ECHO, KERNEL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.wait_listening_outside(7000)
    host = stack.host.pid
    before = {"descriptors": descriptors(host), "memory": memory(host)}
    output = directory / "bystander"
    bystander = stack.spawn("/usr/bin/python3", "-c", BYSTANDER, stdout=open(output, "w"))
    rng = random.Random(seed)
    rings = {**os.environ, "ALPS_RING_AFTER": "65536"}
    alive, orphans = [], []
    figures = {"started": 0, "killed": 0, "orphaned": 0, "peak": before["memory"]}
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            while len(alive) < clients:
                figures["started"] += 1
                argv = stack.run_argv(restless, KERNEL, figures["started"])
                alive.append(subprocess.Popen(argv, env=rings, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                              stderr=subprocess.DEVNULL, start_new_session=True))
            time.sleep(rng.uniform(0, 0.02))
            child = alive.pop(rng.randrange(len(alive)))
            if rng.random() < 0.3:
                # Its children and whoever shares its sockets go on without it, for a while.
                child.kill()
                orphans.append(child)
                figures["orphaned"] += 1
            else:
                kill_group(child)
            figures["killed"] += 1
            if len(orphans) > clients // 4:
                kill_group(orphans.pop(rng.randrange(len(orphans))))
            assert stack.host.poll() is None, stack.log.read_text()[-4000:]
            assert bystander.poll() is None, output.read_text()[-2000:]
            figures["peak"] = max(figures["peak"], memory(host))
    finally:
        for child in alive + orphans:
            kill_group(child)
    figures["bystander"] = int((output.read_text() or "0").split()[-1])
    kill_group(bystander)
    figures["sessions"] = max(row["peak"] for row in stack.ask("stat")["resources"] if row["name"] == "sessions")
    figures["rings"] = next(counter["value"] for row in stack.ask("netstat", "-s")["instances"] if row["instance"] == "socket"
                            for counter in row["counters"] if counter["name"] == "rings_opened")
    stack.assert_nothing_left(120)
    figures["memory"] = (before["memory"], memory(host))
    figures["descriptors"] = (before["descriptors"], descriptors(host))
    return figures
