"""Programs that carry other programs: the ssh family, inetd, TLS tunnels; and servers of Python's and Java's own making."""

import os
import re
import subprocess

import pytest

from conftest import KERNEL, STACK, random_file, sha256, wait_until


# `python3 -m http.server` asks for its own name before it listens, and here is nobody who knows it.
PAGES = ("python3", "-c", "import http.server as h, socketserver as s, sys\n"
         "s.ThreadingTCPServer((sys.argv[1], int(sys.argv[2])), h.SimpleHTTPRequestHandler).serve_forever()")


@pytest.fixture(params=["server", "client"])
def ssh(request, stack, ssh_keys):
    """sshd on the stack and its clients outside, or the other way: how to run a client, its options, and the address."""
    config, options = ssh_keys
    inside = request.param == "server"
    (stack.spawn if inside else stack.spawn_outside)("/usr/sbin/sshd", "-D", "-e", "-f", config, "-p", 2222)
    (stack.wait_listening if inside else stack.wait_listening_outside)(2222)
    return (stack.outside if inside else stack.run), options, STACK if inside else KERNEL


def test_scp_both_ways(ssh, directory):
    run, options, address = ssh
    original = random_file(directory / "up" / "file", 32)
    run("scp", "-q", *options, "-P", 2222, original, f"root@{address}:{directory}/there")
    run("scp", "-q", *options, "-P", 2222, f"root@{address}:{directory}/there", directory / "back")
    assert sha256(directory / "there") == sha256(directory / "back") == sha256(original)


def test_rsync_over_ssh(ssh, directory):
    run, options, address = ssh
    for index in range(20):
        random_file(directory / "tree" / f"file{index}", 1)
    shell = " ".join(["ssh", *options, "-p", "2222"])
    run("rsync", "-a", "-e", shell, f"{directory}/tree/", f"root@{address}:{directory}/copy/")
    (directory / "tree" / "file3").write_text("changed\n")
    moved = run("rsync", "-a", "--stats", "-e", shell, f"{directory}/tree/", f"root@{address}:{directory}/copy/").stdout
    assert re.search(r"Number of regular files transferred: 1$", moved, re.M)
    for index in range(20):
        assert sha256(directory / "copy" / f"file{index}") == sha256(directory / "tree" / f"file{index}")


def test_port_forwarding(stack, ssh_keys, directory):
    """A port of the kernel's side that leads through sshd on the stack, and one of the stack's that leads outside."""
    config, options = ssh_keys
    stack.spawn("/usr/sbin/sshd", "-D", "-e", "-f", config, "-p", 2222)
    stack.wait_listening(2222)
    (directory / "page").write_text("forwarded\n")
    stack.spawn(*PAGES, STACK, 8000, cwd=directory)
    stack.spawn_outside(*PAGES, KERNEL, 8001, cwd=directory)
    stack.wait_listening(8000)
    stack.wait_listening_outside(8001)
    stack.spawn_outside("ssh", *options, "-p", 2222, "-N", "-L", f"{KERNEL}:9000:{STACK}:8000",
                        "-R", f"9001:{KERNEL}:8001", f"root@{STACK}")
    stack.wait_listening_outside(9000)
    stack.wait_listening(9001)
    assert stack.outside("curl", "-sf", f"http://{KERNEL}:9000/page").stdout == "forwarded\n"
    assert stack.run("curl", "-sf", "http://127.0.0.1:9001/page").stdout == "forwarded\n"


def test_git_over_ssh(stack, ssh_keys, directory):
    config, options = ssh_keys
    env = {**os.environ, "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a",
           "GIT_COMMITTER_EMAIL": "a@b", "HOME": str(directory), "GIT_SSH_COMMAND": " ".join(["ssh", *options, "-p", "2222"])}
    work = directory / "work"
    subprocess.run(["git", "init", "-q", work], check=True, env=env)
    random_file(work / "blob", 8)
    for argv in (["add", "."], ["commit", "-qm", "first"]):
        subprocess.run(["git", "-C", work, *argv], check=True, env=env)
    stack.spawn("/usr/sbin/sshd", "-D", "-e", "-f", config, "-p", 2222)
    stack.wait_listening(2222)
    stack.outside("git", "clone", "-q", f"ssh://root@{STACK}{work}", directory / "copy", env=env)
    assert sha256(directory / "copy" / "blob") == sha256(work / "blob")


def test_inetd(stack, directory):
    """Programs get the connection as descriptors 0 to 2, telnetd among them."""
    (directory / "inetd.conf").write_text(
        f"{STACK}:23 stream tcp4 nowait root /usr/sbin/telnetd telnetd -h -E /bin/sh\n"
        f"{STACK}:7 stream tcp4 nowait root /bin/cat cat\n")
    # telnetd asks for its client's name: here is nobody who knows it.
    (directory / "resolv.conf").write_text("")
    stack.spawn("unshare", "-m", "sh", "-c", f"mount --bind {directory}/resolv.conf /etc/resolv.conf; exec \"$@\"", "sh",
                "inetutils-inetd", "-d", directory / "inetd.conf")
    stack.wait_listening(23)
    stack.wait_listening(7)
    echo = stack._run(stack.outside_argv("nc", "-N", STACK, "7"), stdin=None, input="there and back\n")
    assert echo.stdout == "there and back\n"
    child = stack.spawn_outside("sh", "-c", f"(sleep 1; echo 'echo number $((6*7))'; sleep 1; echo exit; sleep 1) | telnet {STACK}")
    assert "number 42" in child.communicate(timeout=20)[0]


def test_stunnel(stack, directory):
    """TLS from the kernel's side, unwrapped on the stack for a server there."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=stack", "-days", "2",
                    "-keyout", directory / "key", "-out", directory / "certificate"], check=True, capture_output=True)
    (directory / "page").write_text("wrapped\n")
    stack.spawn(*PAGES, STACK, 8000, cwd=directory)
    stack.wait_listening(8000)
    config = directory / "stunnel.conf"
    config.write_text(f"foreground = yes\npid =\nkey = {directory}/key\ncert = {directory}/certificate\n"
                      f"[web]\naccept = {STACK}:443\nconnect = {STACK}:8000\n")
    stack.spawn("stunnel4", config)
    stack.wait_listening(443)
    for _ in range(20):
        assert stack.outside("curl", "-skf", f"https://{STACK}/page").stdout == "wrapped\n"


@pytest.mark.parametrize("kind", ["threads", "processes", "pool"])
def test_pythons_servers(stack, kind):
    code = {"threads": "socketserver.ThreadingTCPServer(address, Handler).serve_forever()",
            "processes": "socketserver.ForkingTCPServer(address, Handler).serve_forever()",
            "pool": """
import multiprocessing, socket
listener = socket.create_server(address)
def serve():
    while True:
        peer, _ = listener.accept()
        Handler(peer, None, None)
        peer.close()
workers = [multiprocessing.Process(target=serve) for _ in range(4)]
for worker in workers: worker.start()
for worker in workers: worker.join()
"""}[kind]
    stack.spawn("python3", "-c", f"""
import socketserver
address = ("{STACK}", 8000)
socketserver.TCPServer.allow_reuse_address = True
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile: self.wfile.write(line.upper())
{code}
""")
    stack.wait_listening(8000)
    output = stack.outside("python3", "-c", f"""
import concurrent.futures, socket
def talk(number):
    with socket.create_connection(("{STACK}", 8000)) as s, s.makefile("rw") as f:
        for turn in range(20):
            f.write(f"line {{number}} {{turn}}\\n"); f.flush()
            assert f.readline() == f"LINE {{number}} {{turn}}\\n"
    return 1
with concurrent.futures.ThreadPoolExecutor(20) as pool: print(sum(pool.map(talk, range(100))))
""").stdout
    assert output == "100\n"


def test_java(stack, directory):
    """A server with a thread a connection, and a client with channels and a selector, both over the stack."""
    (directory / "Both.java").write_text("""
import java.io.*;
import java.net.*;
import java.nio.*;
import java.nio.channels.*;
import java.util.concurrent.*;

public class Both {
    public static void main(String[] words) throws Exception {
        if (words[0].equals("serve")) {
            ServerSocket listener = new ServerSocket(8000, 50, InetAddress.getByName(words[1]));
            ExecutorService pool = Executors.newCachedThreadPool();
            while (true) {
                Socket peer = listener.accept();
                pool.submit(() -> {
                    try (peer) {
                        BufferedReader in = new BufferedReader(new InputStreamReader(peer.getInputStream()));
                        PrintWriter out = new PrintWriter(peer.getOutputStream(), true);
                        for (String line; (line = in.readLine()) != null; ) out.println(line.toUpperCase());
                    }
                    return null;
                });
            }
        }
        Selector selector = Selector.open();
        int open = 20, done = 0;
        for (int i = 0; i < open; i++) {
            SocketChannel channel = SocketChannel.open();
            channel.configureBlocking(false);
            channel.connect(new InetSocketAddress(words[1], 8000));
            channel.register(selector, SelectionKey.OP_CONNECT);
        }
        while (done < open) {
            selector.select();
            for (SelectionKey key : selector.selectedKeys()) {
                SocketChannel channel = (SocketChannel) key.channel();
                if (key.isConnectable()) {
                    channel.finishConnect();
                    channel.write(ByteBuffer.wrap("shout\\n".getBytes()));
                    key.interestOps(SelectionKey.OP_READ);
                } else if (key.isReadable()) {
                    ByteBuffer room = ByteBuffer.allocate(100);
                    channel.read(room);
                    if (new String(room.array(), 0, room.position()).equals("SHOUT\\n")) done++;
                    channel.close();
                }
            }
            selector.selectedKeys().clear();
        }
        System.out.println(done);
    }
}
""")
    subprocess.run(["javac", "-d", directory, directory / "Both.java"], check=True)
    java = ("java", "-Xshare:off", "-Djava.net.preferIPv4Stack=true", "-cp", directory, "Both")
    stack.spawn(*java, "serve", STACK)
    stack.wait_listening(8000, seconds=60)
    assert stack.outside(*java, "connect", STACK).stdout == "20\n"
    stack.spawn_outside(*java, "serve", KERNEL)
    stack.wait_listening_outside(8000, 60)
    assert stack.run(*java, "connect", KERNEL).stdout == "20\n"


def test_a_gibibyte_of_ftp_up_and_down(stack, directory):
    for name in ("ftp", "ftp/up", "empty"):
        (directory / name).mkdir()
    os.chmod(directory / "ftp" / "up", 0o777)
    original = random_file(directory / "ftp" / "big", 1024)
    config = directory / "vsftpd.conf"
    config.write_text(f"""
listen=YES
listen_address={STACK}
background=NO
anonymous_enable=YES
anon_root={directory}/ftp
no_anon_password=YES
write_enable=YES
anon_upload_enable=YES
anon_umask=022
secure_chroot_dir={directory}/empty
""")
    stack.spawn("vsftpd", config)
    stack.wait_listening(21)
    stack.outside("lftp", "-c", f"open ftp://{STACK}; get big -o {directory}/got; cd up; put {directory}/got -o copy")
    assert sha256(directory / "ftp" / "up" / "copy") == sha256(original)
