"""The two plain ftp programs against vsftpd, from either side of the stack, in both modes."""

import pytest

from conftest import KERNEL, STACK, random_file, sha256
from test_data import vsftpd


@pytest.mark.parametrize("mode", ["passive", "active"])
@pytest.mark.parametrize("inside", [True, False], ids=["server", "client"])
@pytest.mark.parametrize("program", ["tnftp", "inetutils-ftp"])
def test_ftp_program(stack, directory, program, inside, mode):
    vsftpd(stack, directory, inside)
    original = random_file(directory / "ftp" / "big", 16)
    run_argv, address = (stack.outside_argv, STACK) if inside else (stack.run_argv, KERNEL)
    words = f"""open {address}
user anonymous nobody@here
binary
ls
get big {directory}/got
cd up
put {original} copy
quit
"""
    result = stack._run(run_argv(program, "-n", "-v", "-p" if mode == "passive" else "-A"), stdin=None, input=words)
    assert "230 Login successful" in result.stdout and result.stdout.count("226 ") >= 3, result.stdout
    assert " big" in result.stdout
    assert sha256(directory / "got") == sha256(original)
    assert sha256(directory / "ftp" / "up" / "copy") == sha256(original)
