"""CPython's own tests of everything that speaks over a socket, on the stack and on the kernel's network: nothing may fail
that does not fail there too, but for what EXCUSED names with its reason."""

import re
import subprocess

import pytest

SUITES = ["test_socket", "test_select", "test_selectors", "test_epoll", "test_poll", "test_asyncore", "test_asynchat",
          "test_httplib", "test_ftplib", "test_poplib", "test_imaplib", "test_smtplib", "test_telnetlib",
          "test_urllib2_localnet", "test_xmlrpc", "test_socketserver", "test_ssl", "test_asyncio"]
EXCUSED = {
    "UDPLITE": "there is no UDP-Lite plugin",
    "test_epoll.TestEPoll.test_control_and_wait": "wants data to have arrived when send returns; a stack takes a turn",
    "test_sendfile_close_peer_in_the_middle_of_receiving":
        "its 256 KiB fit into the pair in front of the stack: the sender is done before its peer closes",
}


def outcome(run, directory, suite):
    """Names of the tests that failed, and how many there were."""
    # Names are asked of nobody: the nameserver of this machine cannot be reached from the namespace.
    (directory / "resolv.conf").write_text("")
    result = run("unshare", "-m", "sh", "-c", f"mount --bind {directory}/resolv.conf /etc/resolv.conf; exec \"$@\"", "sh",
                 "/usr/bin/python3", "-m", "test", "-v", "--timeout", "120", "-i", "*VSOCK*", suite, check=False,
                 timeout=500, cwd=directory)
    text = result.stdout + result.stderr
    assert "== Tests result:" in text, text[-3000:]
    return set(re.findall(r"^(?:FAIL|ERROR): \S+ \((\S+)\)", text, re.M)), sum(map(int, re.findall(r"^Ran (\d+) test", text, re.M)))


@pytest.mark.parametrize("suite", SUITES)
def test_suite(stack, directory, suite):
    expected, total = outcome(stack.outside, directory, suite)
    failed, done = outcome(stack.run, directory, suite)
    assert done == total
    surplus = {name for name in failed - expected if not any(words in name for words in EXCUSED)}
    assert not surplus
    stack.assert_nothing_left(90)
