"""Web servers, proxies and load generators."""

import re
import subprocess

import pytest

from conftest import KERNEL, STACK, random_file, sha256

WRK = re.compile(r"requests in .*", re.M)


def wrk(text):
    """Requests done, and what failed."""
    assert WRK.search(text), text
    requests = int(re.search(r"(\d+) requests in", text)[1])
    errors = re.search(r"(Socket errors: .*|Non-2xx or 3xx responses: \d+)", text)
    assert not errors, errors[0]
    return requests


def nginx(stack, directory, inside, workers=8, listen=""):
    address, port = (STACK, 8080) if inside else (KERNEL, 80)
    for name in ("www", "tmp"):
        (directory / name).mkdir(exist_ok=True)
    (directory / "www" / "index.html").write_text("hello over the stack\n")
    config = directory / f"nginx-{port}.conf"
    config.write_text(f"""
pid {directory}/{port}.pid; error_log {directory}/{port}.log; worker_processes {workers}; daemon off; user root;
events {{ worker_connections 1024; }}
http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
  client_body_temp_path {directory}/tmp; proxy_temp_path {directory}/tmp; fastcgi_temp_path {directory}/tmp;
  uwsgi_temp_path {directory}/tmp; scgi_temp_path {directory}/tmp;
  server {{ listen {address}:{port} {listen}; root {directory}/www; location /up {{ proxy_pass http://{KERNEL}:80/; }} }} }}
""")
    (stack.spawn if inside else stack.spawn_outside)("nginx", "-c", config, stdout=subprocess.DEVNULL)
    (stack.wait_listening if inside else stack.wait_listening_outside)(port)
    return f"http://{address}:{port}"


@pytest.mark.parametrize("listen", ["", "reuseport"])
def test_nginx_with_eight_workers(stack, directory, listen):
    url = nginx(stack, directory, inside=True, listen=listen)
    assert wrk(stack.outside("wrk", "-t2", "-c64", "-d3s", f"{url}/").stdout) > 2000
    assert wrk(stack.outside("wrk", "-t2", "-c64", "-d2s", "-H", "Connection: close", f"{url}/").stdout) > 500
    original = random_file(directory / "www" / "big", 64)
    stack.outside("curl", "-sf", "-o", directory / "got", f"{url}/big")
    assert sha256(directory / "got") == sha256(original)


def test_nginx_as_a_proxy(stack, directory):
    """Connections of the kernel's side to the stack, and of the stack to the kernel's side, in one process."""
    nginx(stack, directory, inside=False, workers=1)
    url = nginx(stack, directory, inside=True, workers=2)
    assert wrk(stack.outside("wrk", "-t2", "-c32", "-d3s", f"{url}/up").stdout) > 500


def test_ab_inside(stack, directory):
    url = nginx(stack, directory, inside=False)
    text = stack.run("ab", "-q", "-n", 2000, "-c", 32, f"{url}/").stdout
    assert "Complete requests:      2000" in text and "Failed requests:        0" in text
    text = stack.run("ab", "-q", "-k", "-n", 5000, "-c", 32, f"{url}/").stdout
    assert "Complete requests:      5000" in text and "Failed requests:        0" in text


def test_wrk_inside(stack, directory):
    url = nginx(stack, directory, inside=False)
    assert wrk(stack.run("wrk", "-t2", "-c64", "-d3s", f"{url}/").stdout) > 2000


@pytest.mark.parametrize("module", ["prefork", "event"])
def test_apache(stack, directory, module):
    (directory / "www").mkdir()
    original = random_file(directory / "www" / "big", 32)
    config = directory / "apache.conf"
    config.write_text(f"""
ServerRoot /etc/apache2
ServerName stack
PidFile {directory}/apache.pid
ErrorLog {directory}/apache.log
DefaultRuntimeDir {directory}
Mutex file:{directory} default
LoadModule mpm_{module}_module /usr/lib/apache2/modules/mod_mpm_{module}.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
Listen {STACK}:8080
User www-data
Group www-data
DocumentRoot {directory}/www
<Directory {directory}/www>
  Require all granted
</Directory>
""")
    stack.spawn("/usr/sbin/apache2", "-D", "FOREGROUND", "-f", config, stdout=subprocess.DEVNULL)
    stack.wait_listening(8080)
    stack.outside("curl", "-sf", "-o", directory / "got", f"http://{STACK}:8080/big")
    assert sha256(directory / "got") == sha256(original)
    text = stack.outside("ab", "-q", "-n", 1000, "-c", 16, f"http://{STACK}:8080/").stdout
    assert "Complete requests:      1000" in text


def test_haproxy(stack, directory):
    nginx(stack, directory, inside=False)
    config = directory / "haproxy.cfg"
    config.write_text(f"""
global
  maxconn 1000
defaults
  mode http
  timeout connect 5s
  timeout client 10s
  timeout server 10s
frontend in
  bind {STACK}:8080
  default_backend out
backend out
  server one {KERNEL}:80
""")
    stack.spawn("haproxy", "-db", "-f", config, stdout=subprocess.DEVNULL)
    stack.wait_listening(8080)
    assert wrk(stack.outside("wrk", "-t2", "-c32", "-d3s", f"http://{STACK}:8080/").stdout) > 500


NODE_SERVER = """
const http = require('http');
http.createServer((q, r) => { r.end('hello from node ' + q.url); }).listen(8080, process.argv[1]);
"""
NODE_CLIENT = """
const http = require('http'); let left = 200;
for (let i = 0; i < 200; i++) http.get(process.argv[1] + '/' + i, r => { let t = ''; r.on('data', d => t += d);
  r.on('end', () => { if (t !== 'hello from node /' + i) process.exit(1); if (--left === 0) console.log('all'); }); });
"""


def test_node_server_and_client(stack):
    stack.spawn("node", "-e", NODE_SERVER, STACK)
    stack.wait_listening(8080)
    assert wrk(stack.outside("wrk", "-t1", "-c16", "-d2s", f"http://{STACK}:8080/").stdout) > 200
    assert stack.run("node", "-e", NODE_CLIENT, f"http://{STACK}:8080").stdout == "all\n"


def test_tls(stack, directory):
    """openssl on both sides of the stack, and stunnel in front of a plain server."""
    key, cert = directory / "key.pem", directory / "cert.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
                    "-subj", "/CN=stack"], check=True, capture_output=True)
    stack.spawn("openssl", "s_server", "-accept", f"{STACK}:4433", "-key", key, "-cert", cert, "-www")
    stack.wait_listening(4433)
    assert "Ciphers supported" in stack.outside("curl", "-skf", f"https://{STACK}:4433/").stdout
    url = nginx(stack, directory, inside=False)
    config = directory / "stunnel.conf"
    config.write_text(f"""
foreground = yes
pid =
cert = {cert}
key = {key}
[web]
accept = {STACK}:8443
connect = {url.removeprefix('http://')}
""")
    stack.spawn("stunnel4", config)
    stack.wait_listening(8443)
    for _ in range(20):
        assert stack.outside("curl", "-skf", f"https://{STACK}:8443/").stdout == "hello over the stack\n"
