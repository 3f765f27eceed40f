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
            subprocess.run(["cc", "-O2", "-w", "-pthread", *options, "-o", path, PROGRAMS / f"{name}.c"], check=True)
        return path

    return compile


def both(stack, program, *arguments, **options):
    """What the program prints over the kernel's stack and over ours, line by line."""
    return [runner(program, *arguments, **options).stdout.splitlines() for runner in (stack.outside, stack.run)]


def assert_same(stack, program, *arguments, **options):
    kernel, ours = both(stack, program, *arguments, **options)
    assert kernel, "the program printed nothing"
    assert ours == kernel


@pytest.mark.parametrize("name", ["transfer", "messages", "descriptors", "processes", "stdio", "confinement", "waiting", "ancillary"])
def test_calls_do_what_they_do_on_the_kernel(stack, build, name):
    assert_same(stack, build(name))


def test_signals_and_cancellation(stack, build):
    """With an address on the tap that nobody has, so that a connection attempt goes on."""
    assert_same(stack, build("signals"), "10.11.12.99")
