"""kill -9 on either side."""

import os
import signal
import subprocess
import time

from conftest import ALPS, KERNEL, STACK, random_file, wait_until


def test_a_killed_client_resets_its_peer_and_leaks_nothing(stack):
    server = stack.spawn_outside("python3", "-c", f"""
import socket, time
s = socket.create_server(("{KERNEL}", 7002))
c, _ = s.accept()
total = 0
try:
    while data := c.recv(65536):
        total += len(data)
    print("end after", total > 0, flush=True)
except ConnectionResetError:
    print("reset after", total > 0, flush=True)
print(time.monotonic(), flush=True)
""")
    stack.wait_listening_outside(7002)
    client = stack.spawn("python3", "-c", f"""
import socket
s = socket.create_connection(("{KERNEL}", 7002))
while True:
    s.sendall(bytes(65536))
""")
    wait_until(lambda: stack.sockets("tcp", "ESTABLISHED"), what="the connection")
    time.sleep(0.3)
    killed = time.monotonic()
    client.kill()
    output, _ = server.communicate(timeout=10)
    lines = output.splitlines()
    assert lines[0] in ("end after True", "reset after True")
    assert float(lines[1]) - killed < 2
    stack.assert_nothing_left()
    assert stack.host.poll() is None


def test_a_killed_host_is_an_error_for_its_clients_never_an_end(stack, nginx_outside, directory):
    random_file(directory / "www" / "1G", 256)
    client = stack.spawn("python3", "-c", f"""
import socket
s = socket.create_connection(("{KERNEL}", 80))
s.sendall(b"GET /1G HTTP/1.0\\r\\n\\r\\n")
s.recv(1000)
print("started", flush=True)
try:
    while data := s.recv(1000):
        pass
    print("end")
except OSError as error:
    print(type(error).__name__)
try:
    socket.create_connection(("{KERNEL}", 80))
    print("connected")
except OSError as error:
    print(error.errno)
""")
    assert client.stdout.readline() == "started\n"
    os.kill(host_pid(stack), signal.SIGKILL)
    output, _ = client.communicate(timeout=20)
    assert output.splitlines() == ["ConnectionResetError", "100"]  # ENETDOWN


def test_a_download_cut_off_by_the_hosts_death_is_a_failed_download(stack, nginx_outside, directory):
    random_file(directory / "www" / "1G", 1024)
    client = stack.spawn("curl", "-sS", "--limit-rate", "20M", "-o", directory / "got", f"{nginx_outside}/1G")
    wait_until(lambda: (directory / "got").exists() and (directory / "got").stat().st_size > 0, what="first bytes")
    os.kill(host_pid(stack), signal.SIGKILL)
    client.communicate(timeout=20)
    assert client.returncode != 0


def host_pid(stack):
    """The host below `ip netns exec`, which execs: the same process."""
    return stack.host.pid


def test_run_without_a_host_says_what_to_do(directory):
    result = subprocess.run([ALPS, "run", "--socket", str(directory / "none.sock"), "--", "true"],
                            capture_output=True, text=True)
    assert result.returncode == 2
    assert "alps up" in result.stderr


def test_sigterm_removes_what_was_made(make_stack):
    stack = make_stack()
    stack.host.send_signal(signal.SIGTERM)
    assert stack.host.wait(10) == 0
    assert not os.path.exists(stack.socket)
    assert "tap0" not in stack.outside("ip", "-br", "link").stdout


def test_a_stale_socket_file_is_replaced_and_a_live_one_refused(make_stack):
    stack = make_stack()
    second = stack.outside(ALPS, "host", "--name", stack.name, "--socket", stack.socket, "--interface", "tap:tap1",
                           check=False)
    assert second.returncode != 0 and "is running" in second.stderr + second.stdout
    stack.host.kill()
    stack.host.wait()
    assert os.path.exists(stack.socket)
    stack.start()
    assert stack.tool("stat").returncode == 0
