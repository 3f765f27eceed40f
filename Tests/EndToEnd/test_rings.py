"""Bulk data of streams, which goes through rings in shared memory: no program can see the difference, whatever it does.

The programs run over the kernel's stack as well, where what they expect must be true. ALPS_RING_SEEDS: seeds of the traffic.
"""

import os
import re
import signal
import subprocess
import time

import pytest

from conftest import ALPS, KERNEL, STACK, wait_until
from killing import compile, kill_group

PYTHON = "/usr/bin/python3"
SEEDS = int(os.environ.get("ALPS_RING_SEEDS", 300))


@pytest.fixture(autouse=True)
def early(monkeypatch):
    """Rings come soon, so that much happens beside them."""
    monkeypatch.setenv("ALPS_RING_AFTER", str(1 << 18))


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """Compiles a program, once; `-static`: so that the shim is not in it."""
    folder = tmp_path_factory.mktemp("rings")
    made = {}

    def get(name, *options):
        if (name, options) not in made:
            where = folder / ("static" if options else "dynamic")
            where.mkdir(exist_ok=True)
            made[name, options] = compile(where, name, *options)
        return made[name, options]

    return get


def socket_counters(stack):
    groups = {row["instance"]: row["counters"] for row in stack.ask("netstat", "-s")["instances"]}
    return {row["name"]: row["value"] for row in groups["socket"]}


def rings(stack):
    """How often a direction of a stream got a ring, and was in-band again; bells; broken rules."""
    counters = socket_counters(stack)
    return {name: counters[f"ring{'s' if name in ('opened', 'closed') else ''}_{name}"]
            for name in ("opened", "closed", "bells", "violations")}


def assert_unharmed(stack):
    assert stack.host.poll() is None, stack.log.read_text()[-4000:]
    assert rings(stack)["violations"] == 0
    stack.assert_nothing_left(60)


def staged(stack, *argv, seconds=120, at_stage=None, outside=False):
    """Runs a program that halts at its stages. Returns what it printed besides, and the counters at each stage."""
    spawn = stack.spawn_outside if outside else stack.spawn
    child = spawn("timeout", "-s", "KILL", seconds, *argv, stdin=subprocess.PIPE)
    lines, seen = [], {}
    for line in child.stdout:
        if line.startswith("-- "):
            if not outside:
                seen[line[3:-1]] = rings(stack)
                if at_stage:
                    at_stage(line[3:-1])
            child.stdin.write("\n")
            child.stdin.flush()
        else:
            lines.append(line.rstrip("\n"))
    assert child.wait(10) == 0, (lines[-20:], stack.log.read_text()[-2000:])
    return lines, seen


# --- bytes

SEND = """
import hashlib, random, socket, sys
data = random.Random(7).randbytes(48 << 20)
s = socket.create_connection((sys.argv[1], 9000))
for start in range(0, len(data), 1 << 17): s.sendall(data[start:start + (1 << 17)])
print(hashlib.sha256(data).hexdigest())
"""
TAKE = """
import hashlib, socket, sys
s = socket.create_server((sys.argv[1], 9000)); print("ready", flush=True); c, _ = s.accept(); h = hashlib.sha256()
while data := c.recv(1 << 18): h.update(data)
print(h.hexdigest())
"""


@pytest.mark.parametrize("lost", ["", " drop 150,151,300,301,302,450,700,1000"])
def test_a_send_ring_grows_in_mid_stream_when_the_path_takes_more(make_stack, monkeypatch, lost):
    monkeypatch.setenv("ALPS_RING_AFTER", str(1 << 16))
    stack = make_stack("--link", "delay 5ms limit 100000" + lost)
    # On a busy machine the buffer may have grown before there is a ring.
    for _ in range(5):
        taker = stack.spawn_outside(PYTHON, "-c", TAKE, KERNEL)
        assert taker.stdout.readline() == "ready\n"
        sent = stack.run(PYTHON, "-c", SEND, KERNEL).stdout
        assert taker.communicate(timeout=60)[0] == sent
        if socket_counters(stack)["rings_extended"] > 0:
            break
    else:
        pytest.fail("no ring has got more room")
    assert_unharmed(stack)


def traffic(stack, program, first, count, workers=2, seconds=500):
    """Seeds, some at a time. What went wrong."""
    each = count // workers
    children = [stack.spawn(program, "both", first + number * each, each) for number in range(workers)]
    wrong = []
    for child in children:
        output, _ = child.communicate(timeout=seconds)
        if child.returncode != 0 or not output.endswith(" bytes, 0 bad\n"):
            wrong += output.splitlines()
    return wrong


def test_every_byte_of_every_call_over_lo0(stack, programs):
    assert traffic(stack, programs("ring_traffic"), 1, SEEDS) == []
    counters = rings(stack)
    assert counters["opened"] > SEEDS / 2 and counters["closed"] > SEEDS / 4
    assert_unharmed(stack)


def test_every_byte_while_send_rings_give_up_room_and_get_it_back(make_stack, programs):
    """Any stream that moves is fast, and the least share is half of what a ring has at first."""
    stack = make_stack("--sysctl", "kern.ipc.ringfast=1", "--sysctl", "kern.ipc.ringshare=1")
    assert traffic(stack, programs("ring_traffic"), 1, SEEDS // 2) == []
    assert socket_counters(stack)["rings_shrunk"] > SEEDS / 20
    assert_unharmed(stack)


@pytest.mark.parametrize("role", ["accept", "connect"])
def test_every_byte_of_every_call_over_the_tap(stack, programs, role):
    program, count = programs("ring_traffic"), max(SEEDS // 4, 20)
    if role == "accept":
        server = stack.spawn(program, "accept", 7000, 1, count)
        stack.wait_listening(7000)
        client = stack.spawn_outside(program, "connect", STACK, 7000, 1, count)
    else:
        server = stack.spawn_outside(program, "accept", 7000, 1, count)
        stack.wait_listening_outside(7000)
        client = stack.spawn(program, "connect", KERNEL, 7000, 1, count)
    outputs = [child.communicate(timeout=300)[0] for child in (server, client)]
    assert all(output.endswith(" bytes, 0 bad\n") for output in outputs), outputs
    assert rings(stack)["opened"] > count / 4
    assert_unharmed(stack)


def test_the_seeds_are_right_on_the_kernel(stack, programs):
    assert stack.outside(programs("ring_traffic"), "both", 1, 100, timeout=300).stdout.endswith(" bytes, 0 bad\n")


# --- code that knows nothing of rings

# Those after which nothing has a ring any more.
HANDED_OVER = ["exec", "vfork", "exec-0", "vfork-0", "spawn", "spawn-0", "spawn-itself", "system", "popen", "rights", "stdio",
               "confined"]


@pytest.mark.parametrize("name", HANDED_OVER + ["exec-itself", "dprintf", "fork-after", "fork-before", "fork-apart", "dup",
                                                "dup-before", "replaced"])
def test_a_stream_goes_to_code_without_the_shim_in_mid_stream(stack, programs, name):
    program, other = programs("ring_handover"), programs("ring_handover", "-static")
    assert staged(stack, program, name, other, outside=True)[0] == ["done"]
    lines, seen = staged(stack, program, name, other)
    assert lines == ["done"]
    if name != "fork-before":
        assert seen["promoted"]["opened"] > 0
    if name in HANDED_OVER:
        assert seen["over"]["closed"] > seen["promoted"]["closed"]
    assert_unharmed(stack)


ENDS = ["shut-reading", "shut-writing", "peer-ends", "peer-closes", "reset-by-peer", "close-unread", "close-unsent",
        "urgent-early", "urgent-late", "in-line", "low-water", "counts", "counted-spliced", "counted-urgent", "first-writes",
        "by-number", "raw-reads", "stale-number", "threads-read", "threads-write", "woken-by-shutdown", "interrupted",
        "errno-left-alone", "shifted", "interrupted-reads"]
# Those that are in-band for a while or for good, by what they do.
GOES_BACK = ["urgent-early", "urgent-late", "in-line", "low-water"]


@pytest.mark.parametrize("name", ENDS)
def test_a_stream_with_a_ring_is_the_same_as_one_of_the_kernel(stack, programs, monkeypatch, name):
    program = programs("ring_ends")
    monkeypatch.setenv("HOST_PID", "0")
    expected = staged(stack, program, name, outside=True)[0]
    assert expected[-1] == "done"
    monkeypatch.setenv("HOST_PID", str(stack.host.pid))
    lines, seen = staged(stack, program, name)
    assert lines == expected
    assert rings(stack)["opened"] > 0
    if name in GOES_BACK:
        assert seen["over"]["closed"] > seen["promoted"]["closed"]
    if name in ("urgent-early", "urgent-late"):
        # Who wants to hear of urgent data, as curl does, has rings to read from until there are some, and afterwards again.
        assert seen["over"]["opened"] >= seen["promoted"]["opened"] + 3
    assert_unharmed(stack)


# --- payload that is read straight into a ring

SENDER = f"""
import socket
listener = socket.create_server(("{KERNEL}", 7100))
print("ready", flush=True)
for _ in range(2):
    connection, _ = listener.accept()
    connection.sendall(bytes(64 << 20))
    connection.close()
"""
RECEIVER = f"""
import socket
connection = socket.create_connection(("{KERNEL}", 7100))
left = 64 << 20
while left > 0: left -= len(connection.recv(65536)) or left
"""


def test_payload_is_read_into_rings_only_while_all_clients_are_of_one_user(stack):
    sender = stack.spawn_outside(PYTHON, "-c", SENDER, stdout=subprocess.PIPE)
    assert sender.stdout.readline().strip()

    def read_to_place():
        before = socket_counters(stack)["payloads_read_to_place"]
        stack.run(PYTHON, "-c", RECEIVER)
        return socket_counters(stack)["payloads_read_to_place"] - before

    other = stack.spawn("setpriv", "--reuid=nobody", "--clear-groups", PYTHON, "-c",
                        "import socket; held = socket.socket(); print('ready', flush=True); input()",
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline().strip()
    assert read_to_place() == 0
    kill_group(other)
    wait_until(lambda: len(stack.ask("ps")["sessions"]) <= 1)
    assert read_to_place() > 0
    assert_unharmed(stack)


# --- readiness


@pytest.mark.parametrize("name", ["masks", "little-by-little", "told-of-room", "late-edges", "one-shot", "one-shot-edges",
                                  "nested"])
def test_readiness_is_that_of_the_kernel(stack, programs, name):
    program = programs("ring_readiness")
    expected = staged(stack, program, name, outside=True)[0]
    assert expected[-1] == "done"
    lines, seen = staged(stack, program, name)
    assert lines == expected
    assert seen["promoted"]["opened"] > 0
    assert_unharmed(stack)


def test_what_is_left_in_a_ring_is_readable_at_once(stack, programs, monkeypatch):
    """To poll and select: the host, which puts the next byte into the pair, is stopped meanwhile."""
    monkeypatch.setenv("HOST_PID", str(stack.host.pid))
    lines, seen = staged(stack, programs("ring_readiness"), "partly", seconds=60)
    assert lines == ["poll 1 1", "ppoll 1 1", "select 2 1 1", "pselect 1 1",
                     "poll 0 0", "ppoll 0 0", "select 1 0 1", "pselect 0 0", "done"]
    assert seen["promoted"]["opened"] > 0
    assert_unharmed(stack)


def test_what_the_host_adds_during_a_read_is_readable(stack, programs):
    lines, seen = staged(stack, programs("ring_readiness"), "appended", seconds=60)
    assert lines == ["100000, then told 1", "done"]
    assert seen["promoted"]["opened"] > 0
    assert_unharmed(stack)


def test_an_idle_ring_costs_no_processor_time(stack, programs):
    used = {}

    def at_stage(name):
        fields = open(f"/proc/{stack.host.pid}/stat").read().rsplit(") ", 1)[1].split()
        used[name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    lines, seen = staged(stack, programs("ring_readiness"), "idle", at_stage=at_stage)
    assert lines == ["done"]
    assert seen["promoted"]["opened"] > 0
    # Two seconds each, in which the host also answers `alps netstat` once.
    for state in ("quiet", "with unread bytes", "full"):
        assert used[f"still {state}"] - used[state] < 0.15, (state, used)
    assert_unharmed(stack)


# --- faults


def test_clients_with_rings_are_killed_at_random(stack, programs):
    program = programs("ring_faults")
    server = stack.spawn(program, "serve", 7000)
    stack.wait_listening(7000)
    for turn in range(30):
        clients = [stack.spawn(program, "client", 7000) for _ in range(2)]
        wait_until(lambda: rings(stack)["opened"] >= 4 * turn, 20, "rings of the clients")
        time.sleep(0.01 * (turn % 10))
        for client in clients:
            kill_group(client)
            stack.children.remove(client)
            assert client.stdout.read() == ""
        assert stack.host.poll() is None, stack.log.read_text()[-4000:]
        assert server.poll() is None, server.stdout.read()
    assert rings(stack)["opened"] > 60
    kill_group(server)
    assert server.stdout.read() == ""
    assert_unharmed(stack)


@pytest.mark.parametrize("seed", range(3))
def test_one_of_two_processes_with_a_ring_is_killed_and_the_other_goes_on(stack, programs, seed):
    program = programs("ring_faults")
    server = stack.spawn(program, "serve", 7000)
    stack.wait_listening(7000)
    assert stack.run(program, "siblings", 7000, seed, 20, timeout=300).stdout == "0 bad\n"
    assert server.poll() is None, server.stdout.read()
    assert rings(stack)["opened"] >= 20
    kill_group(server)
    assert server.stdout.read() == ""
    assert_unharmed(stack)


def test_the_death_of_a_child_that_never_needed_the_host_is_noticed(stack, programs):
    assert stack.run(programs("ring_faults"), "stolen", timeout=30).stdout == "done\n"
    assert_unharmed(stack)


@pytest.mark.parametrize("way", ["read", "write", "poll", "unread"])
def test_the_death_of_the_host_is_a_reset(stack, programs, way):
    """Whatever the program waits for, with rings on both ends."""
    child = stack.spawn("timeout", "-s", "KILL", 60, programs("ring_faults"), "waiting", way, stdin=subprocess.PIPE)
    assert child.stdout.readline() == "-- ready\n"
    assert rings(stack)["opened"] >= 2
    child.stdin.write("\n")
    child.stdin.flush()
    # It goes on to wait.
    time.sleep(0.3)
    os.kill(stack.host.pid, signal.SIGKILL)
    output, _ = child.communicate(timeout=30)
    lines = output.splitlines()
    assert child.returncode == 0, lines
    assert "read: ECONNRESET" in lines or way == "write" and "write: -1 ECONNRESET" in lines, lines
    assert lines[-1] == "write: -1 over", lines
    if way == "poll":
        assert lines[0] == "poll: 1"


def test_the_death_of_the_host_under_traffic(stack, programs):
    program = programs("ring_faults")
    server = stack.spawn(program, "serve", 7000)
    stack.wait_listening(7000)
    clients = [stack.spawn(program, "client", 7000) for _ in range(4)]
    wait_until(lambda: rings(stack)["opened"] >= 16, 20, "rings of the clients")
    os.kill(stack.host.pid, signal.SIGKILL)
    for client in clients:
        output, _ = client.communicate(timeout=30)
        assert client.returncode == 0 and re.fullmatch(r"read (ECONNRESET|0), write (EPIPE|ECONNRESET)\n", output), output
    assert server.poll() in (None, 0)


def test_a_client_that_scribbles_over_its_ring_harms_itself_only(stack, programs):
    program = programs("ring_faults")
    server = stack.spawn(program, "serve", 7000, "anything")
    stack.wait_listening(7000)
    bystander = stack.spawn(programs("ring_traffic"), "both", 5000, 60)
    without = []
    for seed in range(1, 41):
        argv = stack.run_argv("timeout", "-s", "KILL", "20", program, "hostile", 7000, seed)
        result = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert stack.host.poll() is None, (seed, stack.log.read_text()[-4000:])
        assert server.poll() is None, (seed, server.stdout.read())
        # What its own shim makes of all that is its own affair.
        assert "the file" not in result.stdout, result.stdout
        if "rings 1\n" not in result.stdout:
            without.append((seed, result))
    assert without == []
    assert rings(stack)["violations"] > 0
    output, _ = bystander.communicate(timeout=300)
    assert output.endswith(" bytes, 0 bad\n"), output
    assert stack.run(programs("ring_traffic"), "both", 1, 20).stdout.endswith(" bytes, 0 bad\n")
    kill_group(server)
    stack.assert_nothing_left(60)


@pytest.mark.parametrize("what", ["memory", "descriptors"])
def test_without_memory_or_descriptors_a_stream_stays_in_band(stack, programs, what):
    lines, _ = staged(stack, programs("ring_faults"), "limits", what)
    assert lines == ["done"]
    assert_unharmed(stack)
