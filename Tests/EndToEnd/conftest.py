"""Network namespaces, a stack on a tap in each, and the programs on both sides of it.

The kernel's side of the tap is 10.11.12.1, the stack 10.11.12.13. Everything lives in a namespace that the fixture makes
and removes; the machine's own interfaces are never touched.
"""

import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("ALPS_BIN", ROOT / ".build" / "release")).resolve()
ALPS = str(BIN / "alps")
STACK, KERNEL = "10.11.12.13", "10.11.12.1"


def wait_until(condition, seconds=10.0, what="condition"):
    """Polls until the condition holds; the bound is generous since the machine may be busy."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"{what} did not hold within {seconds} s")


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Stack:
    """One namespace with one host in it."""

    count = 0

    def __init__(self, *options, directory, environment=None, preexec=None):
        Stack.count += 1
        self.name = f"t{os.getpid()}n{Stack.count}"
        self.netns = f"alps-{self.name}"
        self.directory = pathlib.Path(directory)
        self.socket = str(self.directory / f"{self.name}.sock")
        self.log = self.directory / f"{self.name}.log"
        self.children = []
        self.preexec = preexec
        self.environment = {**os.environ, **(environment or {})}
        subprocess.run(["ip", "netns", "add", self.netns], check=True)
        subprocess.run(["ip", "-n", self.netns, "link", "set", "lo", "up"], check=True)
        self.start(*options)

    def start(self, *options):
        self.host = subprocess.Popen(
            ["ip", "netns", "exec", self.netns, ALPS, "host", "--name", self.name, "--socket", self.socket,
             "--interface", "tap:tap0", "--address", f"{STACK}/24", "--gateway", KERNEL, *options],
            stdout=open(self.log, "w"), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self.environment,
            preexec_fn=self.preexec)
        wait_until(lambda: "ready\n" in self.log.read_text() or self.host.poll() is not None, what="start of the host")
        assert self.host.poll() is None, self.log.read_text()

    def stop(self):
        for child in self.children:
            # Servers have children of their own.
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()
        if self.host.poll() is None:
            self.host.send_signal(signal.SIGTERM)
            try:
                self.host.wait(10)
            except subprocess.TimeoutExpired:
                self.host.kill()
        subprocess.run(["ip", "netns", "delete", self.netns])

    # --- programs

    def run_argv(self, *argv):
        return [ALPS, "run", "--socket", self.socket, "--", *map(str, argv)]

    def outside_argv(self, *argv):
        return ["ip", "netns", "exec", self.netns, *map(str, argv)]

    def _run(self, argv, check=True, timeout=120, **options):
        options.setdefault("stdin", subprocess.DEVNULL)
        result = subprocess.run(argv, text=options.pop("text", True), capture_output=True, timeout=timeout, **options)
        if check and result.returncode != 0:
            raise AssertionError(f"{argv} ended with {result.returncode}\n{result.stdout}\n{result.stderr}\n"
                                 f"host: {self.log.read_text()[-2000:]}")
        return result

    def run(self, *argv, **options):
        """Runs a program over the stack and returns its result."""
        return self._run(self.run_argv(*argv), **options)

    def outside(self, *argv, **options):
        """Runs a program on the kernel's side of the tap."""
        return self._run(self.outside_argv(*argv), **options)

    def _spawn(self, argv, **options):
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.STDOUT)
        child = subprocess.Popen(argv, text=True, start_new_session=True, **options)
        self.children.append(child)
        return child

    def spawn(self, *argv, **options):
        return self._spawn(self.run_argv(*argv), **options)

    def spawn_outside(self, *argv, **options):
        return self._spawn(self.outside_argv(*argv), **options)

    # --- looking at the stack

    def tool(self, *argv, **options):
        """An `alps` command about this stack."""
        return self._run([ALPS, *map(str, argv), "--socket", self.socket], **options)

    def ask(self, *argv):
        return json.loads(self.tool(*argv, "--json").stdout)

    def sockets(self, proto=None, state=None):
        rows = self.ask("netstat")["sockets"]
        return [row for row in rows
                if (proto is None or row["proto"] == proto) and (state is None or row["state"] == state)]

    def in_use(self):
        """Resources in use, those at zero left out."""
        return {row["name"]: row["inUse"] for row in self.ask("stat")["resources"] if row["inUse"]}

    def listening(self, port, proto="tcp"):
        return any(row["local"].endswith(f":{port}") and (proto != "tcp" or row["state"] == "LISTEN")
                   for row in self.sockets(proto))

    def wait_listening(self, port, proto="tcp", seconds=15):
        wait_until(lambda: self.listening(port, proto), seconds, f"{proto} port {port} on the stack")

    def wait_listening_outside(self, port, seconds=15):
        wait_until(lambda: f":{port} " in self.outside("ss", "-Hltun").stdout, seconds, f"kernel port {port}")

    def assert_nothing_left(self, seconds=15):
        """No socket, mbuf, descriptor or session is left once all clients have gone and TIME-WAIT has passed."""
        def clean():
            used = self.in_use()
            return not any(used.get(name) for name in
                           ("sockets", "mbufs", "clusters", "big clusters", "sessions", "pair descriptors"))
        try:
            wait_until(clean, seconds)
        except AssertionError:
            raise AssertionError(f"left over: {self.in_use()}\n{self.tool('netstat').stdout}")


@pytest.fixture
def directory():
    path = tempfile.mkdtemp(prefix="alps-test-")
    os.chmod(path, 0o755)
    yield pathlib.Path(path)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def make_stack(directory):
    stacks = []

    def make(*options, **more):
        stack = Stack(*options, directory=directory, **more)
        stacks.append(stack)
        return stack

    yield make
    for stack in stacks:
        stack.stop()


@pytest.fixture
def stack(make_stack):
    return make_stack()


NGINX = """
pid {directory}/{name}.pid; error_log {directory}/{name}.error.log; worker_processes 1; daemon off; user root;
events {{ worker_connections 1024; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000;
    client_body_temp_path {directory}/tmp; proxy_temp_path {directory}/tmp; fastcgi_temp_path {directory}/tmp;
    uwsgi_temp_path {directory}/tmp; scgi_temp_path {directory}/tmp;
    server {{ listen {address}:{port}; root {directory}/www; }}
}}
"""


def nginx_config(directory, name, address, port):
    (directory / "www").mkdir(exist_ok=True)
    (directory / "tmp").mkdir(exist_ok=True)
    path = directory / f"{name}.conf"
    path.write_text(NGINX.format(directory=directory, name=name, address=address, port=port))
    return path


def random_file(path, mebibytes):
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        for _ in range(mebibytes):
            file.write(os.urandom(1 << 20))
    return path


@pytest.fixture
def nginx_outside(stack, directory):
    """nginx on the kernel's side, port 80, serving directory/www."""
    stack.spawn_outside("nginx", "-c", nginx_config(directory, "outside", KERNEL, 80))
    stack.wait_listening_outside(80)
    return f"http://{KERNEL}"


@pytest.fixture
def ssh_keys(directory):
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)], check=True)
    keys = directory / "authorized_keys"
    keys.write_text((directory / "user.pub").read_text())
    keys.chmod(0o600)
    os.makedirs("/run/sshd", exist_ok=True)
    config = directory / "sshd_config"
    config.write_text(f"HostKey {directory}/host\nAuthorizedKeysFile {keys}\nPidFile none\nUsePAM no\n"
                      "StrictModes no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n")
    options = ["-F", "none", "-i", str(directory / "user"), "-o", "StrictHostKeyChecking=no",
               "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]
    return config, options
