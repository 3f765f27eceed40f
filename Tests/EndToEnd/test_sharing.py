"""Two processes, one stack."""

from conftest import STACK

SERVER = """
import socket
s = socket.create_server(("0.0.0.0", 7000))
print("ready", flush=True)
while True:
    c, peer = s.accept()
    while data := c.recv(4096):
        c.sendall(data.upper())
    c.close()
"""


def test_a_port_taken_by_one_process_is_taken_for_the_other(stack):
    stack.spawn("python3", "-c", SERVER)
    stack.wait_listening(7000)
    second = stack.run("python3", "-c", "import socket; socket.create_server(('0.0.0.0', 7000), reuse_port=False)",
                       check=False)
    assert "Address already in use" in second.stderr


def test_processes_talk_over_lo0(stack):
    stack.spawn("python3", "-c", SERVER)
    stack.wait_listening(7000)
    client = """
import socket, sys
for host in ("127.0.0.1", sys.argv[1]):
    with socket.create_connection((host, 7000)) as s:
        peer = s.getpeername()
        s.sendall(b"hello")
        s.shutdown(socket.SHUT_WR)
        print(s.recv(100).decode(), peer)
"""
    lines = stack.run("python3", "-c", client, STACK).stdout.splitlines()
    assert lines == ["HELLO ('127.0.0.1', 7000)", f"HELLO ('{STACK}', 7000)"]


def test_a_forked_child_uses_its_parents_socket(stack):
    script = """
import os, socket
a = socket.create_server(("127.0.0.1", 0))
b = socket.create_connection(a.getsockname())
c, _ = a.accept()
if os.fork() == 0:
    b.sendall(b"from the child")
    d = socket.create_connection(a.getsockname())
    d.sendall(b"second")
    os._exit(0)
os.wait()
b.close()
print(c.recv(100).decode(), end=" ")
d, _ = a.accept()
print(d.recv(100).decode())
"""
    assert stack.run("python3", "-c", script).stdout == "from the child second\n"
    stack.assert_nothing_left()
