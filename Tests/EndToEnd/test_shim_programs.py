"""Programs that print what their calls did: the same over the kernel's stack and over ours."""

import pathlib
import subprocess

import pytest

PROGRAMS = pathlib.Path(__file__).parent / "programs"


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Compiles a program of that folder, once."""
    folder = tmp_path_factory.mktemp("programs")
    folder.chmod(0o755)
    folder.parent.chmod(0o755)
    folder.parent.parent.chmod(0o755)

    def compile(name, *options):
        path = folder / (name + "".join(options).replace("-", "_"))
        if not path.exists():
            subprocess.run(["cc", "-O2", "-w", "-pthread", "-o", path, PROGRAMS / f"{name}.c", *options], check=True)
        return path

    return compile


def both(stack, program, *arguments, **options):
    """What the program prints over the kernel's stack and over ours, line by line."""
    return [runner(program, *arguments, **options).stdout.splitlines() for runner in (stack.outside, stack.run)]


def assert_same(stack, program, *arguments, **options):
    kernel, ours = both(stack, program, *arguments, **options)
    assert kernel, "the program printed nothing"
    assert ours == kernel


@pytest.mark.parametrize("name", ["transfer", "messages", "descriptors", "processes", "stdio", "confinement", "waiting", "ancillary",
                                  "exceptional", "sharing", "lingering", "pointers"])
def test_calls_do_what_they_do_on_the_kernel(stack, build, name):
    assert_same(stack, build(name))


def test_signals_and_cancellation(stack, build):
    """With an address on the tap that nobody has, so that a connection attempt goes on."""
    assert_same(stack, build("signals"), "10.11.12.99")


def test_the_function_syscall_reaches_the_stack(stack):
    """What a program asks for by number is the stack's too, and there are no rings that would go past the shim."""
    script = """
import ctypes, errno, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.syscall(41, socket.AF_INET, socket.SOCK_DGRAM, 0)
name = ctypes.create_string_buffer(struct.pack("=H", socket.AF_INET) + struct.pack("!H", 7007) + bytes(12), 16)
print(libc.syscall(49, fd, name, 16), libc.syscall(425, 8, name), errno.errorcode[ctypes.get_errno()])
sys.stdin.read()
"""
    server = stack.spawn("python3", "-uc", script, stdin=subprocess.PIPE)
    assert server.stdout.readline() == "0 -1 ENOSYS\n"
    assert stack.listening(7007, "udp")
    server.communicate("")
    stack.assert_nothing_left()


def test_interfaces_are_the_stacks(stack):
    script = """
import socket
names = socket.if_nameindex()
print([name for _, name in names], all(socket.if_nametoindex(name) == number for number, name in names),
      all(socket.if_indextoname(number) == name for number, name in names))
"""
    assert stack.run("python3", "-c", script).stdout == "['lo0', 'tap0'] True True\n"


def test_a_process_that_gave_up_root_has_no_rights_left(stack):
    """The session that it opened as root ends with that: interfaces cannot be changed through it."""
    script = """
import fcntl, os, socket, struct
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
request = struct.pack("16si20x", b"lo0", 16436)
fcntl.ioctl(made, 0x8922, request)
os.setuid(65534)
try:
    fcntl.ioctl(made, 0x8922, struct.pack("16si20x", b"lo0", 16000))
except PermissionError:
    print("refused")
made.bind(("127.0.0.1", 0))
print(made.getsockname()[0])
"""
    assert stack.run("python3", "-c", script).stdout == "refused\n127.0.0.1\n"
