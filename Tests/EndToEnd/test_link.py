from conftest import KERNEL, STACK, nginx_config, random_file, sha256


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
