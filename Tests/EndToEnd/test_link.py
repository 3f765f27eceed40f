import subprocess

import pytest

from conftest import ALPS, KERNEL, STACK, nginx_config, random_file, sha256


def test_a_file_arrives_intact_over_a_lossy_link(make_stack, directory):
    stack = make_stack("--link", "loss 5% delay 5ms")
    original = random_file(directory / "www" / "64M", 64)
    stack.spawn_outside("nginx", "-c", nginx_config(directory, "outside", KERNEL, 80))
    stack.wait_listening_outside(80)
    stack.run("curl", "-sf", "-o", directory / "got", f"http://{KERNEL}/64M", timeout=600)
    assert sha256(directory / "got") == sha256(original)


def test_capture_writes_a_pcapng_file(make_stack, directory):
    stack = make_stack("--capture", str(directory / "tap0.pcapng"))
    stack.outside("ping", "-c", 3, "-i", 0.1, STACK)
    stack.host.terminate()
    stack.host.wait(10)
    assert (directory / "tap0.pcapng").read_bytes()[:4] == b"\x0a\x0d\x0d\x0a"
    assert (directory / "tap0.pcapng").stat().st_size > 6 * 98


@pytest.mark.parametrize("stack_serves", [True, False])
def test_without_offload_every_frame_is_one_packet_of_the_wire(make_stack, directory, stack_serves):
    stack = make_stack("--no-offload")
    original = random_file(directory / "www" / "16M", 16)
    server, address = (stack.spawn, STACK) if stack_serves else (stack.spawn_outside, KERNEL)
    client = stack.outside if stack_serves else stack.run
    server("nginx", "-c", nginx_config(directory, "one", address, 80))
    (stack.wait_listening if stack_serves else stack.wait_listening_outside)(80)
    client("curl", "-sf", "-o", directory / "got", f"http://{address}/16M")
    assert sha256(directory / "got") == sha256(original)
    [tap] = [row for row in stack.ask("netstat", "-i")["interfaces"] if row["name"] == "tap0"]
    frames, data = (tap["packetsOut"], tap["bytesOut"]) if stack_serves else (tap["packetsIn"], tap["bytesIn"])
    assert data > 16 << 20 and data <= frames * 1514, tap


def test_offload_of_a_shared_interface_is_not_the_hosts_to_set(directory):
    result = subprocess.run([ALPS, "host", "--name", "x", "--socket", directory / "x.sock", "--no-offload",
                             "--interface", "packet:lo", "--address", "10.9.0.13/24"],
                            capture_output=True, text=True, timeout=20)
    assert result.returncode != 0 and "--no-offload is for a tap" in result.stderr
