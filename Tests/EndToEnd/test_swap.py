"""First-tier swap: new connections in the new instance, open ones in the old one until they end."""

import json
import os
import subprocess

from conftest import ALPS, BIN, KERNEL, STACK, wait_until


def another_build(directory, name):
    """A second build of a plugin: the same code with another version, in the note and in the descriptor."""
    original = (BIN / f"libalps-{name}.so").read_bytes()
    version = subprocess.run([ALPS, "plugin", "info", "--json", str(BIN / f"libalps-{name}.so")], check=True,
                             capture_output=True, text=True).stdout
    old = json.loads(version)["version"].encode()
    new = old[:-1] + b"9"
    assert old != new and original.count(old) >= 2
    path = directory / f"libalps-{name}-new.so"
    path.write_bytes(original.replace(old, new))
    return path, new.decode()


def mapped(stack, version_path_fragment):
    return version_path_fragment in open(f"/proc/{stack.host.pid}/maps").read()


def instance(stack, name, version):
    return [row for row in stack.ask("plugin", "list")["plugins"] if row["name"] == name and row["version"] == version]


def test_tcp_is_swapped_under_a_running_transfer(stack, directory):
    stack.spawn_outside("iperf3", "-s")
    stack.wait_listening_outside(5201)
    running = stack.spawn("iperf3", "-c", KERNEL, "-t", 4)
    wait_until(lambda: len(stack.sockets("tcp", "ESTABLISHED")) == 2, what="iperf3's two connections")
    old = stack.sockets("tcp", "ESTABLISHED")[0]["version"]
    old_path = instance(stack, "tcp", old)[0]["path"]
    path, new = another_build(directory, "tcp")
    assert mapped(stack, os.path.basename(old_path))

    stack.tool("plugin", "swap", "tcp", path)
    assert {row["version"] for row in stack.sockets("tcp", "ESTABLISHED")} == {old}
    holder = stack.spawn_outside("python3", "-c", f"""
import socket
s = socket.create_server(("{KERNEL}", 7003))
c, _ = s.accept()
c.recv(1)
""")
    stack.wait_listening_outside(7003)
    client = stack.spawn("python3", "-c", f"""
import socket
s = socket.create_connection(("{KERNEL}", 7003))
s.recv(1)
""")
    wait_until(lambda: any(row["remote"].endswith(":7003") and row["version"] == new
                           for row in stack.sockets("tcp", "ESTABLISHED")), what="a connection in the new instance")

    running.communicate(timeout=30)
    assert running.returncode == 0
    wait_until(lambda: not instance(stack, "tcp", old), seconds=90, what="the end of the old instance")
    assert not mapped(stack, os.path.basename(old_path))
    client.kill()
    holder.kill()


def test_a_listener_moves_to_the_new_instance(stack, directory):
    stack.spawn("python3", "-m", "http.server", 8000, cwd=directory, stdout=subprocess.DEVNULL)
    stack.wait_listening(8000)
    path, new = another_build(directory, "tcp")
    stack.tool("plugin", "swap", "tcp", path)
    assert [row["version"] for row in stack.sockets("tcp", "LISTEN")] == [new]
    stack.outside("curl", "-sf", "-o", "/dev/null", f"http://{STACK}:8000/")


def test_two_tcps_side_by_side(stack, nginx_outside, directory):
    (directory / "www" / "index.html").write_text("hello")
    path, new = another_build(directory, "tcp")
    stack.tool("plugin", "load", path, "--as", "tcp/other")
    server = stack.spawn("python3", "-c", "import socket; s = socket.create_server(('0.0.0.0', 7004)); s.accept()",
                         env={**os.environ, "ALPS_TCP": "other"})
    stack.wait_listening(7004)
    assert [row["instance"] for row in stack.sockets("tcp", "LISTEN")] == ["tcp/other"]
    result = stack.run("curl", "-sf", f"{nginx_outside}/", env={**os.environ, "ALPS_TCP": "other"})
    assert result.stdout == "hello"
    assert stack.run("curl", "-sf", f"{nginx_outside}/").stdout == "hello"
    server.kill()
    server.wait()


def test_udp_is_swapped_with_a_bound_socket_open(stack, directory):
    echo = stack.spawn("python3", "-c", """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 7005))
while True:
    data, peer = s.recvfrom(2000)
    s.sendto(data.upper(), peer)
""")
    stack.wait_listening(7005, "udp")
    ask = f"""
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.sendto(b"hello", ("{STACK}", 7005))
print(s.recvfrom(100)[0].decode())
"""
    assert stack.outside("python3", "-c", ask).stdout == "HELLO\n"
    path, new = another_build(directory, "udp")
    stack.tool("plugin", "swap", "udp", path)
    assert [row["version"] for row in stack.sockets("udp")] == [new]
    assert stack.outside("python3", "-c", ask).stdout == "HELLO\n"
    assert len([row for row in stack.ask("plugin", "list")["plugins"] if row["name"] == "udp"]) == 1
    echo.kill()


def test_swap_with_a_bad_file_changes_nothing(stack, directory):
    before = stack.ask("plugin", "list")
    bad = directory / "bad.so"
    bad.write_text("not an ELF file")
    result = stack.tool("plugin", "swap", "tcp", bad, check=False)
    assert result.returncode == 1 and "ELF" in result.stderr and len(result.stderr.splitlines()) == 1
    assert stack.ask("plugin", "list") == before
