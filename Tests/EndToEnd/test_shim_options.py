"""Every socket option, set and read in every form on sockets in every state: as on the machine's own kernel, or refused as
the table says that docs/limitations.md is made of."""

import collections
import json
import pathlib
import subprocess

import pytest

from conftest import ALPS, ROOT

PROGRAM = pathlib.Path(__file__).parent / "programs" / "options.py"

# What differs although it is not refused, with the reason.
DIFFERENT = {
    "SO_SNDBUF": "the initial size is a tunable of the stack",
    "SO_RCVBUF": "the initial size is a tunable of the stack",
    "SO_RCVLOWAT": "Linux's TCP takes half of the receive buffer at most",
    "SO_BINDTODEVICE": "interfaces have other names",
    "SO_INCOMING_CPU": "the kernel tells where packets arrived",
    "SO_LOCK_FILTER": "the kernel refuses to unlock",
    "SO_MEMINFO": "counts",
    "SO_COOKIE": "a number of its own",
    "SO_NETNS_COOKIE": "a number of its own",
    "SO_PEERNAME": "the port is the listener's",
    "SO_TXREHASH": "the kernel takes -1 for its default",
    "IP_OPTIONS": "the kernel clears what is behind the end of the list",
    "IP_MTU_DISCOVER": "datagrams do not discover the path MTU unless told to, as on BSD",
    "IP_MULTICAST_TTL": "the kernel's accepted sockets have another one",
    "IP_ADD_MEMBERSHIP": "another table of routes",
    "IP_DROP_MEMBERSHIP": "another table of routes",
    "IP_PROTOCOL": "the kernel tells the local port",
    "TCP_MAXSEG": "another MTU of the loopback interface",
    "TCP_KEEPCNT": "BSD's initial value",
    "TCP_SYNCNT": "BSD's initial value",
    "TCP_WINDOW_CLAMP": "the kernel's depends on its buffers",
    "TCP_INFO": "counts and times",
    "TCP_CONGESTION": "other algorithms",
    "TCP_CC_INFO": "other algorithms",
    "ICMP_FILTER": "the kernel takes a part of a filter",
}
# Options of newer kernels that the table does not have: unknown, so ENOPROTOOPT.
TOO_NEW = {("SOL_SOCKET", 80), ("IPPROTO_TCP", 42), ("IPPROTO_TCP", 44), ("IPPROTO_TCP", 45), ("IPPROTO_TCP", 46)}
SOCKETS = {"tcp": "TCP", "udp": "UDP", "raw": "raw"}


@pytest.fixture(scope="module")
def table():
    return json.loads(subprocess.run([ALPS, "options", "--json"], check=True, capture_output=True, text=True).stdout)


def described(table, state, level, number):
    """The table's row about an option of a socket."""
    kind = SOCKETS[state.split("-")[0]]
    for row in table:
        if (row["level"], row["number"]) == (level, number) and (not row["sockets"] or kind in row["sockets"].split()):
            return row
    return None


def parse(text):
    found = collections.OrderedDict()
    for line in text.splitlines():
        state, level, number, what = line.split(" ", 3)
        what, _, result = what.rpartition(" ")
        found[state, level, int(number), what] = result
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the program prints over the kernel's stack and over ours."""
    from conftest import Stack
    directory = tmp_path_factory.mktemp("options")
    for folder in (directory, directory.parent, directory.parent.parent):
        folder.chmod(0o755)
    stack = Stack(directory=directory)
    try:
        yield [parse(run("python3", PROGRAM).stdout) for run in (stack.outside, stack.run)]
    finally:
        stack.stop()


def test_options_are_as_on_the_kernel(results, table):
    kernel, ours = results
    assert kernel.keys() == ours.keys() and len(kernel) > 100_000
    wrong = collections.defaultdict(list)
    for (state, level, number, what), result in kernel.items():
        if ours[state, level, number, what] == result or (level, number) in TOO_NEW:
            continue
        row = described(table, state, level, number)
        if row is None:
            wrong[level, number].append((state, what, result, ours[state, level, number, what]))
        elif row["name"] not in DIFFERENT and row["treatment"] != "refused":
            wrong[row["name"]].append((state, what, result, ours[state, level, number, what]))
    unlisted = {key: cases for key, cases in wrong.items()
                # Zero bytes for an option that nobody has.
                if any(what != "set -" for _, what, _, _ in cases)}
    assert not unlisted, "\n".join(f"{key}: {cases[:3]}" for key, cases in unlisted.items())


def test_what_is_refused_is_refused(results, table):
    """Setting it fails with the error that the table names, or did not change anything."""
    _, ours = results
    refused = collections.defaultdict(set)
    for (state, level, number, what), result in ours.items():
        row = described(table, state, level, number)
        if row is None or row["treatment"] != "refused" or not what.startswith("set "):
            continue
        if result == "0":
            assert ours[state, level, number, "then" + what[3:]] == ours[state, level, number, "get/16"], (row, state, what)
        refused[row["name"], row["sockets"]].add(result)
    # Structures that are longer than any value tried.
    untried = {"TCP_MD5SIG", "TCP_MD5SIG_EXT", "IP_MSFILTER", "MCAST_MSFILTER", "MCAST_BLOCK_SOURCE",
               "MCAST_UNBLOCK_SOURCE", "MCAST_JOIN_SOURCE_GROUP", "MCAST_LEAVE_SOURCE_GROUP"}
    for row in table:
        # test_packet_sockets.py has those of packet sockets.
        if row["level"] not in ("ioctl", "SOL_PACKET") and row["treatment"] == "refused" and row["name"] not in untried:
            errors = refused[row["name"], row["sockets"]]
            error = "ENOTSUP" if row["error"] == "EOPNOTSUPP" else row["error"]
            assert error in errors and errors <= {"0", "EINVAL", error}, (row, errors)


def test_what_is_taken_is_taken(results, table):
    """No option that is said to be there is refused as unknown."""
    kernel, ours = results
    for (state, level, number, what), result in ours.items():
        row = described(table, state, level, number)
        if kernel[state, level, number, what] == result:
            continue
        if row and row["treatment"] in ("acts", "kept", "ignored") and what.startswith("set "):
            assert result not in ("ENOPROTOOPT", "ENOTSUP"), (row, state, what)


def test_the_exceptions_are_exceptions(results, table):
    """An option that differs no more must leave the list above."""
    kernel, ours = results
    differing = {described(table, *key[:3])["name"] for key, result in kernel.items()
                 if ours[key] != result and described(table, *key[:3])}
    assert set(DIFFERENT) - differing == set()


def test_the_document_has_the_table():
    text = (ROOT / "docs" / "limitations.md").read_text()
    made = subprocess.run([ALPS, "options", "--markdown"], check=True, capture_output=True, text=True).stdout
    _, _, rest = text.partition("<!-- made by: alps options --markdown -->\n")
    listed, end, _ = rest.partition("<!-- end -->")
    assert end and listed == made, "run scripts/option-list"


# Requests of ioctl that differ, with the reason.
OTHER_REQUESTS = {
    0x8906: "the kernel has a time once a packet has come", 0x8907: "the same",
    0x8910: "numbers of interfaces",
    0x8902: "FIOGETOWN and its like are the pair's", 0x8901: "the same", 0x8903: "the same", 0x8904: "the same",
    0x8940: "bridges", 0x8941: "bridges", 0x89a0: "bridges", 0x89a1: "bridges", 0x89a2: "bridges", 0x89a3: "bridges",
    0x894c: "namespaces", 0x89e0: "multicast routing", 0x89e1: "multicast routing",
    0x8946: "the kernel looks behind a pointer first",
    0x8991: "bonds", 0x8992: "bonds", 0x8993: "bonds", 0x8994: "bonds", 0x8995: "bonds", 0x8990: "bonds",
    0x89b0: "the kernel looks behind a pointer first",
}


def test_requests_are_as_on_the_kernel(stack, table):
    program = PROGRAM.parent / "requests.py"
    kernel, ours = [run("python3", program, name).stdout.splitlines()
                    for run, name in ((stack.outside, "lo"), (stack.run, "lo0"))]
    assert len(kernel) == len(ours) > 1000
    refused = {row["number"]: row["error"] for row in table if row["level"] == "ioctl" and row["treatment"] == "refused"}
    known = {row["number"] for row in table if row["level"] == "ioctl"}
    wrong = []
    for line, mine in zip(kernel, ours):
        kind, number, which, result = line.split()
        own = mine.split()[-1].replace("ENOTSUP", "EOPNOTSUPP")
        number = int(number, 16)
        if own == result.replace("ENOTSUP", "EOPNOTSUPP") or number in OTHER_REQUESTS:
            continue
        if number in refused:
            # Refused as the table says.
            assert own in (refused[number], "ENODEV", "EPFNOSUPPORT"), mine
        else:
            wrong.append((line, own, "in the table" if number in known else "not in the table"))
    assert not wrong, "\n".join(map(str, wrong[:40]))


def test_options_that_nobody_waits_for_are_in_force_all_the_same(stack):
    program = PROGRAM.with_name("switching.py")
    assert stack.run("/usr/bin/python3", program).stdout == stack.outside("/usr/bin/python3", program).stdout


def test_cork_holds_and_lets_go_as_on_the_kernel(stack):
    program = PROGRAM.with_name("corking.py")
    expected = stack.outside("/usr/bin/python3", program).stdout
    assert stack.run("/usr/bin/python3", program).stdout == expected
    stack.assert_nothing_left()


MAPPED = """
import ctypes, os, random, re, socket, threading
def mapped(name):
    # Where the words are, and how many bytes; the file's length cannot be changed.
    start, end = re.search(fr"([0-9a-f]+)-([0-9a-f]+) \\S+ \\S+ \\S+ \\S+ +/memfd:{name}", open("/proc/self/maps").read()).groups()
    try: os.truncate(f"/proc/self/map_files/{int(start, 16):x}-{end}", 0)
    except OSError as error: print(error.strerror)
    return int(start, 16), int(end, 16) - int(start, 16)
"""


SCRIBBLER = MAPPED + """
listener = socket.create_server(("127.0.0.1", 0))
pairs = []
for _ in range(8):
    near = socket.create_connection(listener.getsockname())
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    pairs.append((near, listener.accept()[0]))
start, length = mapped("alps-cork-words")
done = False
def scribble():
    generator = random.Random(SEED)
    while not done:
        # Words in use mostly.
        word = generator.randrange(length // 4 if generator.random() < .01 else 32)
        ctypes.c_uint32.from_address(start + 4 * word).value = generator.choice((generator.getrandbits(32), 0, 1, 2, 3))
thread = threading.Thread(target=scribble)
thread.start()
for turn in range(300):
    for near, far in pairs:
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, turn & 1)
        near.sendall(b"x" * 10)
for near, far in pairs:
    near.shutdown(socket.SHUT_WR)
    got = 0
    while data := far.recv(65536): got += len(data)
    assert got == 3000, got
done = True
thread.join()
print("all came")
"""


@pytest.mark.parametrize("seed", range(3))
def test_a_client_may_write_anything_into_its_cork_words(stack, seed):
    output = stack.run("/usr/bin/python3", "-c", SCRIBBLER.replace("SEED", str(seed))).stdout
    assert output == "Operation not permitted\nall came\n"
    stack.assert_nothing_left()


def test_no_delay_of_accepted_streams_is_as_on_the_kernel_and_needs_no_message(stack):
    program = PROGRAM.with_name("accepting.py")
    done = stack.run("/usr/bin/python3", program)
    assert done.stdout == stack.outside("/usr/bin/python3", program).stdout
    told = dict(line.split(": ") for line in done.stderr.splitlines())
    # In a word, until somebody asks; and without the option a message waits.
    assert told["words"] == str([1, 0] * 20)
    assert int(told["late"]) > 10
    assert told["none left"] == "0"
    stack.assert_nothing_left()


OPTION_SCRIBBLER = MAPPED + """
listener = socket.create_server(("127.0.0.1", 0))
def connected():
    near = socket.create_connection(listener.getsockname())
    far = listener.accept()[0]
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far
pairs = [connected() for _ in range(4)]
start, length = mapped("alps-option-words")
done = False
def scribble():
    generator = random.Random(SEED)
    while not done:
        word = generator.randrange(length // 8 if generator.random() < .01 else 8)
        old = ctypes.c_uint64.from_address(start + 8 * word).value
        ctypes.c_uint64.from_address(start + 8 * word).value = generator.choice(
            (generator.getrandbits(64), 0, old ^ 1 << 63, old ^ 1 << generator.randrange(64)))
thread = threading.Thread(target=scribble)
thread.start()
for turn in range(80):
    near, far = connected()
    far.sendall(b"x" * 100)
    if turn % 2: assert far.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) in (0, 1)
    far.sendall(b"y" * 100)
    far.close()
    got = b""
    while data := near.recv(1000): got += data
    assert got == b"x" * 100 + b"y" * 100
done = True
thread.join()
print("all came")
"""


@pytest.mark.parametrize("seed", range(3))
def test_a_client_may_write_anything_into_its_option_words(stack, seed):
    output = stack.run("/usr/bin/python3", "-c", OPTION_SCRIBBLER.replace("SEED", str(seed))).stdout
    assert output == "Operation not permitted\nall came\n"
    stack.assert_nothing_left()
