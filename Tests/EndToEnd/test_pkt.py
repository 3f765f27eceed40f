"""`alps pkt run` as people and continuous integration call it."""

import subprocess
import xml.etree.ElementTree

from conftest import ALPS, ROOT

SCRIPTS = ROOT / "Tests" / "Packets"


def run(*arguments):
    return subprocess.run([ALPS, "pkt", "run", *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_passing_scripts_give_status_zero():
    done = run(SCRIPTS / "handshake", SCRIPTS / "close")
    assert done.returncode == 0, done.stdout
    assert " 0 failed, 0 could not be run" in done.stdout


def test_failing_script_gives_status_one_and_says_why():
    done = run(SCRIPTS / "mismatch" / "flags.pkt")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].endswith(
        "flags.pkt:10: error handling packet: live packet field tcp_psh: expected: 0 (0x0) vs actual: 1 (0x1)")
    assert lines[1] == "script packet: 0.000000 . 1:101(100) ack 1"
    assert lines[2].startswith("actual packet: 0.000000 P. 1:101(100) ack 1 win ")


def test_script_that_cannot_be_run_gives_status_two(tmp_path):
    script = tmp_path / "bad.pkt"
    script.write_text("0 nonsense\n")
    done = run(script)
    assert done.returncode == 2
    assert "bad.pkt:2: parse error at the end of the script: expected '('" in done.stdout


def test_workers_and_one_process_agree():
    alone = run("--jobs", 1, "--tap", SCRIPTS)
    together = run("--jobs", 3, "--tap", SCRIPTS)
    assert alone.returncode == together.returncode == 1
    assert alone.stdout == together.stdout
    lines = alone.stdout.splitlines()
    assert lines[0] == "TAP version 13"
    assert lines[1] == f"1..{len(list(SCRIPTS.rglob('*.pkt')))}"
    failed = [line for line in lines if line.startswith("not ok")]
    assert failed and all("/mismatch/" in line for line in failed)


def test_junit_report(tmp_path):
    report = tmp_path / "report.xml"
    run("--junit", report, SCRIPTS / "mismatch", SCRIPTS / "udp")
    suite = xml.etree.ElementTree.parse(report).getroot()
    count = len(list((SCRIPTS / "mismatch").glob("*.pkt")))
    assert int(suite.get("failures")) == count == len(suite.findall("testcase/failure"))
    assert suite.get("errors") == "0"


def test_options_of_packetdrill_and_definitions(tmp_path):
    script = tmp_path / "mtu.pkt"
    script.write_text("""
        0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3
       +0 bind(3, ..., ...) = 0
       +0 listen(3, 1) = 0
       +0 < S 0:0(0) win WINDOW <mss 1000>
       +0 > S. 0:0(0) ack 1 <mss 1160>
    """)
    assert run("--mtu=1200", "-D", "WINDOW=100", script).returncode == 0
    assert run("--mtu=1300", "-D", "WINDOW=100", script).returncode == 1
    assert run("--mtu=1200", script).returncode == 2
    refused = run("--wire_server", script)
    assert refused.returncode != 0 and "there is no wire" in refused.stderr


def test_broken_plugin_is_reported(tmp_path):
    plugin = tmp_path / "libalps-tcp.so"
    plugin.write_bytes(b"not a library")
    done = run("--plugin", f"tcp={plugin}", SCRIPTS / "udp")
    assert done.returncode == 2
    assert "libalps-tcp.so" in done.stdout
