"""Stock programs over the stack and over the kernel: iperf3, nginx and curl, redis, wrk."""

import json
import pathlib
import subprocess
import tempfile

import placement
from measures import PROGRAMS, Figure, Measure, bulk_figures, kernel, rate_figures
from namespaces import BenchError, wait_until

NGINX = """
pid {directory}/nginx.pid; error_log {directory}/error.log; worker_processes 1; daemon off; user root;
events {{ worker_connections 1024; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000;
    client_body_temp_path {directory}/t; proxy_temp_path {directory}/t; fastcgi_temp_path {directory}/t;
    uwsgi_temp_path {directory}/t; scgi_temp_path {directory}/t;
    server {{ listen {address}:8080; root {root}; }}
}}
"""
SHARED_MEMORY = pathlib.Path("/dev/shm")


def finish(child, seconds):
    try:
        output, errors = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise BenchError(f"no result within {seconds:g} s") from None
    if child.returncode != 0:
        raise BenchError(((errors or "") + (output or "")).strip()[-300:] or f"exit status {child.returncode}")
    return output


def iperf3(reverse):
    def run(path, settings):
        path.application("iperf3", "-s", "-1", "-p", 5201, "-B", path.stack_address)
        path.wait_listening(5201)
        whole = max(1, round(settings.seconds + settings.warm_up))
        client = path.peer("iperf3", "-c", path.stack_address, "-p", 5201, "-l", "128K", "-t", whole, "-O", 1, "-J",
                           *(["-R"] if reverse else []))
        report = json.loads(finish(client, whole + 30))
        return {"gbps": report["end"]["sum_received"]["bits_per_second"] / 1e9}
    return run


class Files:
    """A folder in memory with a large file and a small one, for nginx."""

    def __init__(self, mebibytes):
        self.folder = tempfile.TemporaryDirectory(prefix="alps-bench-", dir=SHARED_MEMORY)
        self.path = pathlib.Path(self.folder.name)
        self.path.chmod(0o755)
        block = bytes(range(256)) * 4096
        with open(self.path / "large", "wb") as file:
            for _ in range(mebibytes):
                file.write(block)
        (self.path / "small").write_bytes(block[:612])

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        self.folder.cleanup()


def begin_nginx(path, root, over_stack):
    address = path.stack_address if over_stack else path.kernel_address
    (path.directory / "t").mkdir()
    configuration = path.directory / "nginx.conf"
    configuration.write_text(NGINX.format(directory=path.directory, address=address, root=root))
    (path.application if over_stack else path.peer)("nginx", "-c", configuration)
    if over_stack:
        path.wait_listening(8080)
    else:
        wait_until(lambda: path.client_namespace.listening(8080), 20, "nginx")
    return f"http://{address}:8080"


def curl(stack_serves):
    def run(path, settings):
        with Files(settings.mebibytes) as root:
            url = begin_nginx(path, root, stack_serves)
            # The first is the warm-up.
            words = ["curl", "-sS", "-w", "%{size_download} %{time_total} %{time_pretransfer}\n"]
            for _ in range(4):
                words += ["-o", "/dev/null", f"{url}/large"]
            client = (path.peer if stack_serves else path.application)(*words)
            rows = [[float(word) for word in line.split()] for line in finish(client, 120).splitlines()]
        if len(rows) != 4 or any(row[0] != settings.mebibytes << 20 for row in rows):
            raise BenchError(f"curl did not get the file: {rows}")
        return {"gbps": sum(row[0] for row in rows[1:]) * 8 / sum(row[1] - row[2] for row in rows[1:]) / 1e9}
    return run


def redis(pipeline):
    def run(path, settings):
        path.application("redis-server", "--bind", path.stack_address, "--port", 6379, "--save", "", "--appendonly", "no",
                         "--protected-mode", "no", "--dir", path.directory)
        path.wait_listening(6379)

        def rates(requests):
            client = path.peer("redis-benchmark", "-h", path.stack_address, "-c", 50, "-n", requests, "-P", pipeline,
                               "-t", "set,get", "--csv")
            found = {}
            for line in finish(client, 120).splitlines():
                words = [word.strip('"') for word in line.split(",")]
                if words[0] in ("SET", "GET"):
                    found[words[0].lower()] = float(words[1])
            if len(found) != 2:
                raise BenchError("redis-benchmark told no rates")
            return found

        rate = rates(5000 * pipeline)["set"]
        return rates(max(5000, int(rate * settings.seconds / 2)))
    return run


def wrk(path, settings):
    with Files(1) as root:
        url = begin_nginx(path, root, True)
        whole = max(1, round(settings.seconds))
        for seconds in (1, whole):
            text = finish(path.peer("wrk", "-t", 1, "-c", 64, "-d", f"{seconds}s", f"{url}/small"), whole + 60)
    for line in text.splitlines():
        if line.startswith("Requests/sec:"):
            if "Non-2xx" in text:
                raise BenchError("nginx refused requests")
            return {"rate": float(line.split()[1])}
    raise BenchError(f"wrk told no rate: {text.strip()[-200:]}")


def redis_figures():
    return (Figure("set", "SET", "1/s", targets=(kernel(0.6),), digits=0),
            Figure("get", "GET", "1/s", targets=(kernel(0.6),), digits=0))


def throughput(*targets):
    return bulk_figures(*targets)[:1]


STOCK_MEASURES = [
    Measure("iperf3-sends", "iperf3, 128 KiB writes, stack sends", throughput(kernel(0.5)), iperf3(True), PROGRAMS,
            placement.apart),
    Measure("iperf3-receives", "iperf3, 128 KiB writes, stack receives", throughput(kernel(0.5)), iperf3(False), PROGRAMS,
            placement.apart),
    Measure("nginx-sends", "nginx over the stack (sendfile), curl on the kernel's side", throughput(kernel(0.5)), curl(True),
            PROGRAMS, placement.apart, quick=True),
    Measure("nginx-receives", "curl over the stack, nginx (sendfile) on the kernel's side", throughput(kernel(0.5)),
            curl(False), PROGRAMS, placement.apart),
    Measure("redis", "redis-benchmark, 50 clients", redis_figures(), redis(1), PROGRAMS, quick=True),
    Measure("redis-pipeline", "redis-benchmark, 50 clients, pipeline of 16", redis_figures(), redis(16), PROGRAMS),
    Measure("wrk", "wrk on nginx over the stack, 64 connections kept alive", rate_figures("requests/s", kernel(0.6)), wrk,
            PROGRAMS, quick=True),
]
