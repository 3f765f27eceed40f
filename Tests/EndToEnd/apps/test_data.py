"""Databases, caches, file transfer and remote login."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

from conftest import KERNEL, STACK, random_file, sha256, wait_until

POSTGRES = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))


def test_redis_pipelined_with_two_hundred_clients(stack):
    stack.spawn("redis-server", "--port", 6379, "--bind", STACK, "--protected-mode", "no", "--save", "",
                stdout=subprocess.DEVNULL)
    stack.wait_listening(6379)
    for options in (["-c", 200], ["-c", 50, "-P", 16]):
        text = stack.outside("redis-benchmark", "-h", STACK, "-n", 20000, "-t", "set,get,lpush", "--csv", *options).stdout
        rates = [float(line.split(",")[1].strip('"')) for line in text.splitlines()[1:]]
        assert len(rates) == 3 and min(rates) > 1000, text
        text = stack.run("redis-benchmark", "-h", STACK, "-n", 10000, "-t", "set,get", "--csv", *options).stdout
        assert len(text.splitlines()) == 3


def test_redis_replication(stack, directory):
    """A replica on the stack of a server on the kernel's side."""
    stack.spawn_outside("redis-server", "--port", 6379, "--bind", KERNEL, "--protected-mode", "no", "--save", "", "--dir",
                        directory, stdout=subprocess.DEVNULL)
    stack.wait_listening_outside(6379)
    stack.outside("redis-benchmark", "-h", KERNEL, "-n", 5000, "-r", 5000, "-t", "set", "-q")
    keys = stack.outside("redis-cli", "-h", KERNEL, "dbsize").stdout
    (directory / "replica").mkdir()
    stack.spawn("redis-server", "--port", 6380, "--bind", STACK, "--protected-mode", "no", "--save", "", "--dir",
                directory / "replica", "--replicaof", f"{KERNEL} 6379", stdout=subprocess.DEVNULL)
    stack.wait_listening(6380)
    wait_until(lambda: stack.outside("redis-cli", "-h", STACK, "-p", 6380, "dbsize").stdout == keys, 20, "replication")


def test_memcached(stack):
    stack.spawn("memcached", "-l", STACK, "-p", 11211, "-U", 11211, "-u", "nobody", "-t", 4)
    stack.wait_listening(11211)
    code = f"""
import socket
s = socket.create_connection(("{STACK}", 11211)); f = s.makefile("rwb")
for i in range(2000):
    v = b"x" * (i * 7 % 5000); f.write(b"set k%d 0 0 %d\\r\\n%s\\r\\n" % (i, len(v), v)); f.flush(); assert f.readline() == b"STORED\\r\\n"
for i in range(2000):
    f.write(b"get k%d\\r\\n" % i); f.flush(); n = int(f.readline().split()[3]); assert n == i * 7 % 5000
    f.read(n + 2); assert f.readline() == b"END\\r\\n"
u = socket.socket(type=socket.SOCK_DGRAM); u.connect(("{STACK}", 11211)); u.settimeout(5)
u.send(b"\\0\\1\\0\\0\\0\\1\\0\\0version\\r\\n"); assert u.recv(100)[8:].startswith(b"VERSION")
print("same")
"""
    assert stack.outside("/usr/bin/python3", "-c", code).stdout == "same\n"
    assert stack.run("/usr/bin/python3", "-c", code).stdout == "same\n"


@pytest.mark.skipif(not POSTGRES, reason="PostgreSQL is not installed")
def test_postgresql_and_pgbench(stack, directory):
    """A server with a process for each client, and its own benchmark, on either side."""
    bin = POSTGRES[-1]
    data = directory / "pg"
    data.mkdir()
    shutil.chown(data, "postgres")
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    subprocess.run([*as_postgres, bin / "initdb", "-D", data, "-A", "trust"], check=True, capture_output=True)
    with open(data / "pg_hba.conf", "a") as file:
        file.write("host all all 10.11.12.0/24 trust\n")
    os.chmod(stack.socket, 0o666)
    stack.spawn(*as_postgres, bin / "postgres", "-D", data, "-c", f"listen_addresses={STACK}", "-c",
                f"unix_socket_directories={data}", "-c", "fsync=off", stdout=subprocess.DEVNULL)
    stack.wait_listening(5432)
    at = ["-h", STACK, "-U", "postgres"]
    wait_until(lambda: stack._run(stack.outside_argv(bin / "pg_isready", *at), check=False).returncode == 0, 20, "PostgreSQL")
    stack.outside(bin / "pgbench", "-i", "-q", *at, "postgres")
    for run in (stack.outside, stack.run):
        text = run(bin / "pgbench", "-c", 8, "-j", 2, "-T", 3, *at, "postgres").stdout
        assert "number of failed transactions: 0 (0.000%)" in text
        assert float(re.search(r"tps = ([\d.]+)", text)[1]) > 20


def vsftpd(stack, directory, inside):
    (directory / "ftp").mkdir()
    (directory / "ftp" / "up").mkdir()
    os.chmod(directory / "ftp" / "up", 0o777)
    (directory / "empty").mkdir()
    config = directory / "vsftpd.conf"
    config.write_text(f"""
listen=YES
listen_address={STACK if inside else KERNEL}
background=NO
anonymous_enable=YES
anon_root={directory}/ftp
no_anon_password=YES
write_enable=YES
anon_upload_enable=YES
anon_umask=022
secure_chroot_dir={directory}/empty
max_clients=200
max_per_ip=200
pasv_enable=YES
port_enable=YES
connect_from_port_20=NO
""")
    (stack.spawn if inside else stack.spawn_outside)("vsftpd", config)
    (stack.wait_listening if inside else stack.wait_listening_outside)(21)


@pytest.mark.parametrize("mode", ["passive", "active"])
@pytest.mark.parametrize("inside", [True, False], ids=["server", "client"])
def test_ftp(stack, directory, inside, mode):
    vsftpd(stack, directory, inside)
    original = random_file(directory / "ftp" / "big", 64)
    run, address = (stack.outside, STACK) if inside else (stack.run, KERNEL)
    settings = f"set ftp:passive-mode {'on' if mode == 'passive' else 'off'}; set net:max-retries 1; set net:timeout 20"
    run("lftp", "-c", f"{settings}; open ftp://{address}; ls; get big -o {directory}/got; cd up; put {original} -o copy")
    assert sha256(directory / "got") == sha256(original)
    assert sha256(directory / "ftp" / "up" / "copy") == sha256(original)


def test_fifty_ftp_sessions(stack, directory):
    vsftpd(stack, directory, inside=True)
    original = random_file(directory / "ftp" / "some", 2)
    sessions = [stack.spawn_outside("lftp", "-c", f"open ftp://{STACK}; get some -o {directory}/got{i}") for i in range(50)]
    for session in sessions:
        output = session.communicate(timeout=90)[0]
        assert session.returncode == 0, output
    expected = sha256(original)
    assert all(sha256(directory / f"got{i}") == expected for i in range(50))


def test_telnet(stack, directory):
    """telnetd under inetd's convention, a shell behind it: descriptors 0 to 2 are the socket."""
    # telnetd asks for its client's name: here is nobody who knows it.
    (directory / "resolv.conf").write_text("")
    without_names = ["unshare", "-m", "sh", "-c", f"mount --bind {directory}/resolv.conf /etc/resolv.conf; exec \"$@\"", "sh"]
    code = f"""
import os, socket
s = socket.create_server(("{STACK}", 23))
while True:
    c, _ = s.accept()
    if os.fork() == 0:
        for fd in (0, 1, 2): os.dup2(c.fileno(), fd)
        os.execv("/usr/sbin/telnetd", ["telnetd", "-h", "-E", "/bin/sh"])
    c.close()
"""
    stack.spawn(*without_names, "/usr/bin/python3", "-c", code)
    stack.wait_listening(23)
    child = stack.spawn_outside("sh", "-c", f"(sleep 1; echo 'echo number $((6*7))'; sleep 1; echo exit; sleep 1) | telnet {STACK}")
    assert "number 42" in child.communicate(timeout=20)[0]


@pytest.mark.parametrize("inside", [True, False], ids=["client", "server"])
def test_socat(stack, inside):
    run, spawn, address = ((stack.run, stack.spawn_outside, KERNEL) if inside else (stack.outside, stack.spawn, STACK))
    spawn("socat", f"TCP-LISTEN:7000,bind={address},fork,reuseaddr", "EXEC:tr a-z A-Z")
    spawn("socat", f"UDP-RECVFROM:7001,bind={address},fork", "EXEC:tr a-z A-Z")
    (stack.wait_listening_outside if inside else stack.wait_listening)(7000)
    assert run("socat", "-t5", "-", f"TCP:{address}:7000", input="shout\n", stdin=None).stdout == "SHOUT\n"
    assert run("socat", "-t2", "-", f"UDP:{address}:7001", input="shout\n", stdin=None).stdout == "SHOUT\n"


def test_traditional_netcat(stack):
    server = stack.spawn("nc.traditional", "-l", "-p", 7000, "-q", 1)
    stack.wait_listening(7000)
    stack._run(stack.outside_argv("nc.traditional", "-q", "1", STACK, "7000"), stdin=None, input="hello\n")
    assert server.communicate(timeout=10)[0] == "hello\n"


def test_git_over_its_own_protocol(stack, directory):
    """git daemon in inetd style behind socat, cloned from, and pushed to, over the stack."""
    env = {**os.environ, "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a",
           "GIT_COMMITTER_EMAIL": "a@b", "HOME": str(directory)}
    work = directory / "work"
    for argv in (["init", "-q", "--bare", directory / "repo.git"], ["init", "-q", work]):
        subprocess.run(["git", *argv], check=True, env=env)
    random_file(work / "blob", 8)
    for argv in (["add", "."], ["commit", "-qm", "first"], ["push", "-q", directory / "repo.git", "HEAD:refs/heads/main"]):
        subprocess.run(["git", "-C", work, *argv], check=True, env=env)
    stack.spawn("socat", f"TCP-LISTEN:9418,bind={STACK},fork,reuseaddr",
                f"EXEC:git daemon --inetd --export-all --enable=receive-pack --base-path={directory}", env=env)
    stack.wait_listening(9418)
    url = f"git://{STACK}/repo.git"
    stack.outside("git", "clone", "-q", "-b", "main", url, directory / "outside", env=env)
    stack.run("git", "clone", "-q", "-b", "main", url, directory / "inside", env=env)
    for name in ("outside", "inside"):
        assert sha256(directory / name / "blob") == sha256(work / "blob")
    (directory / "inside" / "more").write_text("more\n")
    for argv in (["add", "."], ["commit", "-qm", "second"]):
        subprocess.run(["git", "-C", directory / "inside", *argv], check=True, env=env)
    stack.run("git", "-C", directory / "inside", "push", "-q", url, "HEAD:main", env=env)
    log = subprocess.run(["git", "-C", directory / "repo.git", "log", "--oneline", "main"], capture_output=True, text=True)
    assert len(log.stdout.splitlines()) == 2
