"""`alps run --strict`: programs that the shim cannot be in have the stack's sockets, and none of the kernel's."""

import shutil
import subprocess

import pytest

from conftest import ALPS, KERNEL, ROOT, STACK, wait_until


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A program without a dynamic loader."""
    path = tmp_path_factory.mktemp("bare") / "bare"
    subprocess.run(["gcc", "-O1", "-static", "-Wall", "-Wextra", "-Werror", "-o", path,
                    ROOT / "Tests/EndToEnd/programs/bare.c"], check=True)
    return str(path)


def strict(stack, *argv, options=(), before=()):
    return [*before, ALPS, "run", "--socket", stack.socket, "--strict", *options, "--", *map(str, argv)]


def run(stack, *argv, **more):
    wanted = {key: more.pop(key) for key in ("options", "before") if key in more}
    return stack._run(strict(stack, *argv, **wanted), **more)


def test_static_client(stack, bare):
    stack.spawn_outside("python3", "-c", f"""
import socket
server = socket.create_server(("{KERNEL}", 80))
while True:
    peer, name = server.accept()
    peer.sendall(b"hello\\n")
    print(name[0], peer.recv(100), peer.recv(100), flush=True)
    peer.close()
""")
    stack.wait_listening_outside(80)
    lines = run(stack, bare, "connect", KERNEL, 80).stdout.splitlines()
    assert lines == ["connected 0 4", f"mine 2 {STACK} 16", f"peer 2 {KERNEL} 16", "close-on-exec 1", "end 0"]
    # Nobody listens there.
    assert run(stack, bare, "connect", KERNEL, 81).stdout == "connected 111 4\n"
    stack.assert_nothing_left(70)


def test_static_server_with_children(stack, bare):
    server = stack._spawn(strict(stack, bare, "serve", 90))
    stack.wait_listening(90)
    read = f"import socket; print(socket.create_connection(('{STACK}', 90)).makefile().readline())"
    for _ in range(2):
        assert f"you are {KERNEL}" in stack.outside("python3", "-c", read).stdout
    assert server.communicate(timeout=10)[0] == "child 0\nchild 0\n"
    stack.assert_nothing_left(70)


def test_static_datagrams_both_ways(stack, bare):
    stack.spawn_outside(bare, "udp-serve", 7)
    stack.wait_listening_outside(7)
    expected = ["one two from {0}", "three from {0}", "four", "no wait: -1 Resource temporarily unavailable"]
    assert run(stack, bare, "udp", KERNEL, 7).stdout.splitlines() == [line.format(KERNEL) for line in expected]
    server = stack._spawn(strict(stack, bare, "udp-serve", 7))
    stack.wait_listening(7, "udp")
    assert stack.outside(bare, "udp", STACK, 7).stdout.splitlines() == [line.format(STACK) for line in expected]
    assert server.wait(10) == 0
    stack.assert_nothing_left()


def test_waits_end_with_time_outs_and_signals(stack, bare):
    assert run(stack, bare, "timeout", 5000).stdout.splitlines() == [
        "time-out: -1 Resource temporarily unavailable", "signal: -1 Interrupted system call"]


def test_the_interfaces_are_the_stacks(stack, bare):
    assert run(stack, bare, "interfaces").stdout.splitlines() == ["lo0 127.0.0.1 mtu 65535", f"tap0 {STACK} mtu 1500"]


def test_packet_sockets_are_the_stacks(stack, bare):
    expected = ["sent 60", "ready 1", "received 20 bare kind 4 length 20"]
    assert run(stack, bare, "packet", "tap0").stdout.splitlines() == expected + ["ring -1 Protocol not available"]
    # The same program on the kernel's side of the tap.
    assert stack.outside(bare, "packet", "tap0").stdout.splitlines() == expected + ["ring 0 Success"]
    stack.assert_nothing_left()


def test_no_ring_and_no_ipv6(stack, bare):
    assert run(stack, bare, "ring").stdout.splitlines() == [
        "io_uring -1 Function not implemented", "IPv6 -1 Address family not supported by protocol"]


def test_nothing_reaches_the_kernel(stack, bare, directory):
    """In a namespace that has no route, static and ordinary programs are served; its kernel has sent nothing and never had
    an Internet socket."""
    (directory / "page").write_text("of the stack's\n")
    stack.spawn_outside("python3", "-m", "http.server", "80", "--bind", KERNEL, cwd=directory)
    stack.wait_listening_outside(80)
    empty = f"{stack.netns}e"
    subprocess.run(["ip", "netns", "add", empty], check=True)
    try:
        inside = ("ip", "netns", "exec", empty)
        page = f"http://{KERNEL}/page"
        assert run(stack, "busybox", "wget", "-q", "-O", "-", page, before=inside).stdout == "of the stack's\n"
        assert run(stack, "curl", "-s", page, before=inside).stdout == "of the stack's\n"
        # The supervisor's own view and the shim's agree on the loopback too.
        server = stack._spawn(strict(stack, bare, "serve", 90, before=inside))
        stack.wait_listening(90)
        for _ in range(2):
            answer = run(stack, "bash", "-c", f"exec 3<>/dev/tcp/{STACK}/90; cat <&3", before=inside).stdout
            assert answer == f"you are {STACK}\n"
        assert server.wait(10) == 0
        used = subprocess.run([*inside, "cat", "/proc/net/sockstat", "/proc/net/snmp"], check=True, capture_output=True,
                              text=True).stdout
        assert "TCP: inuse 0 " in used and "UDP: inuse 0 " in used
        lines = [line.split() for line in used.splitlines()]
        names, values = [line for line in lines if line[0] == "Ip:"]
        sent = dict(zip(names, values))["OutRequests"]
        names, values = [line for line in lines if line[0] == "Tcp:"]
        opened = dict(zip(names, values))["ActiveOpens"]
        assert (sent, opened) == ("0", "0")
    finally:
        subprocess.run(["ip", "netns", "delete", empty])


def test_bypass_leads_to_the_kernel_all_the_same(stack, bare):
    """What --bypass names is the kernel's, for a static program too."""
    inside = ("ip", "netns", "exec", stack.netns)
    stack.spawn_outside("python3", "-c", """
import socket
server = socket.create_server(("127.0.0.1", 80))
for _ in range(2):
    peer, name = server.accept()
    peer.sendall(b"kernel\\n")
    peer.recv(100)
    peer.close()
""")
    stack.wait_listening_outside(80)
    wanted = ("--bypass", "127.0.0.0/8")
    lines = run(stack, bare, "connect", "127.0.0.1", 80, options=wanted, before=inside).stdout.splitlines()
    assert lines[0] == "connected 0 4" and lines[2] == "peer 2 127.0.0.1 16"
    ordinary = "exec 3<>/dev/tcp/127.0.0.1/80; read -r line <&3; echo \"$line\" >&3; echo \"$line\""
    assert run(stack, "bash", "-c", ordinary, options=wanted, before=inside).stdout == "kernel\n"


def test_the_supervisor_goes_with_its_program(stack, bare):
    def supervisors():
        return subprocess.run(["pgrep", "-f", "alps supervise --launcher"], capture_output=True, text=True).stdout.split()

    before = set(supervisors())
    program = stack._spawn(strict(stack, "sleep", 60))
    wait_until(lambda: set(supervisors()) - before, what="a supervisor")
    program.kill()
    wait_until(lambda: not set(supervisors()) - before, what="end of the supervisor")


def test_go(stack, directory):
    """Go makes its system calls itself."""
    if not shutil.which("go"):
        pytest.skip("there is no Go here")
    source = directory / "both.go"
    source.write_text("""
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
)

func main() {
	if os.Args[1] == "serve" {
		http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "you are %s", r.RemoteAddr) })
		fmt.Println(http.ListenAndServe(":90", nil))
		return
	}
	var group sync.WaitGroup
	for turn := 0; turn < 40; turn++ {
		group.Add(1)
		go func() {
			defer group.Done()
			answer, err := http.Get(os.Args[2])
			if err != nil { fmt.Println(err); return }
			body, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			fmt.Println(answer.StatusCode, len(body), err)
		}()
	}
	group.Wait()
	socket, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil { fmt.Println(err); return }
	to, _ := net.ResolveUDPAddr("udp4", os.Args[3])
	socket.WriteTo([]byte("ping"), to)
	text := make([]byte, 100)
	count, from, err := socket.ReadFrom(text)
	fmt.Println(string(text[:count]), from, err)
}
""")
    program = directory / "both"
    subprocess.run(["go", "build", "-o", program, source], check=True,
                   env={"PATH": "/usr/bin:/bin", "HOME": str(directory), "CGO_ENABLED": "0", "GO111MODULE": "off"})
    (directory / "page").write_bytes(b"x" * 100_000)
    # The usual backlog of 5 would have some of the 40 try again for half a minute.
    stack.spawn_outside("python3", "-c", f"""
import http.server
http.server.ThreadingHTTPServer.request_queue_size = 64
http.server.ThreadingHTTPServer(("{KERNEL}", 80), http.server.SimpleHTTPRequestHandler).serve_forever()
""", cwd=directory)
    stack.wait_listening_outside(80)
    stack.spawn_outside("python3", "-c", f"""
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("{KERNEL}", 7))
text, name = server.recvfrom(100)
server.sendto(text + b" " + name[0].encode(), name)
""")
    stack.wait_listening_outside(7)
    lines = run(stack, program, "get", f"http://{KERNEL}/page", f"{KERNEL}:7").stdout.splitlines()
    assert lines[:40] == ["200 100000 <nil>"] * 40
    assert lines[40] == f"ping {STACK} {KERNEL}:7 <nil>"
    stack._spawn(strict(stack, program, "serve"))
    stack.wait_listening(90)
    for _ in range(20):
        assert f"you are {KERNEL}" in stack.outside("curl", "-s", f"http://{STACK}:90/").stdout
