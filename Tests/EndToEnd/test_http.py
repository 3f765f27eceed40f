"""curl, nginx and http.server over the stack: whole files, many at once, many in a row."""

import concurrent.futures

from conftest import KERNEL, STACK, nginx_config, random_file, sha256


def test_curl_downloads_a_gibibyte(stack, nginx_outside, directory):
    original = random_file(directory / "www" / "1G", 1024)
    stack.run("curl", "-sf", "-o", directory / "got", f"{nginx_outside}/1G")
    assert sha256(directory / "got") == sha256(original)
    stack.assert_nothing_left()


def test_python_serves_a_gibibyte(stack, directory):
    original = random_file(directory / "www" / "1G", 1024)
    stack.spawn("python3", "-m", "http.server", 8000, cwd=directory / "www", stdout=-3)
    stack.wait_listening(8000)
    stack.outside("curl", "-sf", "-o", directory / "got", f"http://{STACK}:8000/1G")
    assert sha256(directory / "got") == sha256(original)


def test_nginx_serves_while_curl_downloads(stack, nginx_outside, directory):
    original = random_file(directory / "www" / "1G", 1024)
    stack.spawn("nginx", "-c", nginx_config(directory, "inside", "0.0.0.0", 8080), stdout=-3)
    stack.wait_listening(8080)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        down = pool.submit(stack.run, "curl", "-sf", "-o", directory / "down", f"{nginx_outside}/1G")
        up = pool.submit(stack.outside, "curl", "-sf", "-o", directory / "up", f"http://{STACK}:8080/1G")
        down.result()
        up.result()
    assert sha256(directory / "down") == sha256(directory / "up") == sha256(original)


def test_sixty_four_curls_at_once(stack, nginx_outside, directory):
    original = random_file(directory / "www" / "4M", 4)
    digest = sha256(original)

    def fetch(number):
        stack.run("curl", "-sf", "-o", directory / f"got{number}", f"{nginx_outside}/4M")
        return sha256(directory / f"got{number}")

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        assert set(pool.map(fetch, range(64))) == {digest}
    stack.assert_nothing_left()


def test_two_thousand_connections_leave_nothing_behind(stack, nginx_outside, directory):
    (directory / "www" / "index.html").write_text("hello")
    script = f"""
import socket
for number in range(2000):
    with socket.create_connection(("{KERNEL}", 80)) as s:
        s.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        data = b""
        while chunk := s.recv(4096):
            data += chunk
        assert data.endswith(b"hello"), (number, data)
"""
    stack.run("python3", "-c", script)
    stack.assert_nothing_left()
