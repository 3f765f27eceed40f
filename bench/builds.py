"""Builds of the load programs and of the peers, kept outside the repository."""

import hashlib
import os
import pathlib
import shutil
import subprocess

BENCH = pathlib.Path(__file__).resolve().parent
ROOT = BENCH.parent
PROGRAMS = BENCH / "programs"
BIN = pathlib.Path(os.environ.get("ALPS_BIN", ROOT / ".build" / "release")).resolve()
ALPS = BIN / "alps"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "alps-bench"
GVISOR_SOURCES = pathlib.Path("/usr/share/gocode/src/gvisor.dev/gvisor")


class Unavailable(Exception):
    """A peer cannot be had here; the text says why."""


def run(argv, why, **options):
    result = subprocess.run([str(word) for word in argv], capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)
    if result.returncode != 0:
        lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
        raise Unavailable(f"{why}: {lines[-1] if lines else 'no message'}")
    return result


def build(name, sources, make):
    """Path of a program in the cache, made by `make(path)` if its sources have changed since."""
    digest = hashlib.sha256()
    for source in sorted(sources):
        digest.update(source.read_bytes())
    path = CACHE / f"{name}-{digest.hexdigest()[:12]}"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        making = path.with_suffix(f".{os.getpid()}")
        make(making)
        making.rename(path)
    return path


def load_program():
    sources = list((PROGRAMS / "load").glob("*.[ch]"))
    units = [source for source in sources if source.suffix == ".c"]
    return build("load", sources, lambda path: run(
        ["cc", "-O2", "-pthread", "-o", path, *units], "the load program does not build"))


def ring_limit():
    source = PROGRAMS / "ring_limit.c"
    return build("ring-limit", [source], lambda path: run(
        ["cc", "-O2", "-o", path, source], "the ring limit does not build"))


def gvisor():
    return gvisor_program("gvisor", "/usr/share/gocode")


def gvisor_offloading():
    """With a library that is changed in one place: frames of 64 KiB are for sockets only, as it is shipped."""
    if not GVISOR_SOURCES.exists():
        raise Unavailable("Debian's golang-gvisor-gvisor-dev is not installed")
    copy = CACHE / "gvisor-gso" / "src" / "gvisor.dev" / "gvisor"
    if not copy.exists():
        copying = copy.with_name(f"copying.{os.getpid()}")
        shutil.copytree(GVISOR_SOURCES, copying)
        file = copying / "pkg" / "tcpip" / "link" / "fdbased" / "endpoint.go"
        text = file.read_text()
        gate = "\t\tif isSocket {\n\t\t\tif opts.GSOMaxSize != 0 {"
        if text.count(gate) != 1:
            shutil.rmtree(copying)
            raise Unavailable("this gVisor has another way to decide who may have large frames")
        file.write_text(text.replace(gate, gate.replace("if isSocket ", "")))
        copying.rename(copy)
    return gvisor_program("gvisor-gso", f"{CACHE}/gvisor-gso:/usr/share/gocode")


def gvisor_program(name, path):
    if not GVISOR_SOURCES.exists():
        raise Unavailable("Debian's golang-gvisor-gvisor-dev is not installed")
    if not shutil.which("go"):
        raise Unavailable("Debian's golang-go is not installed")
    source = PROGRAMS / "gvisor" / "main.go"
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": path, "GOFLAGS": "", "GOCACHE": str(CACHE / "go"),
                   "CGO_ENABLED": "0"}
    return build(name, [source], lambda program: run(
        ["go", "build", "-o", program, source], "gVisor does not build", env=environment))


def lwip():
    source = PROGRAMS / "lwip" / "server.c"

    def make(path):
        tree = lwip_sources()
        code = [*(tree / "src" / "core").glob("*.c"), *(tree / "src" / "core").glob("ipv[46]/*.c"),
                *(tree / "src" / "api").glob("*.c"), tree / "src" / "netif" / "ethernet.c", tree / "port" / "sys_arch.c",
                tree / "port" / "netif" / "tapif.c"]
        # Debian's own build gives 592 bytes to buffers that take whole frames, and overruns them.
        run(["cc", "-O2", "-w", "-pthread", "-DPBUF_POOL_BUFSIZE=1600", f"-I{tree}/src/include", f"-I{tree}/port/include",
             "-o", path, source, *code], "lwIP does not build")

    return build("lwip", [source], make)


def lwip_sources():
    """Debian's source package, fetched with package lists of its own so that the system's are left alone."""
    folder = CACHE / "lwip"
    found = list(folder.glob("lwip-*/src/core/tcp.c"))
    if not found:
        (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        source_list = folder / "sources.list"
        source_list.write_text(debian_source_line())
        options = ["-o", f"Dir::Etc::SourceList={source_list}", "-o", "Dir::Etc::SourceParts=/dev/null",
                   "-o", f"Dir::State::Lists={folder}/lists", "-o", "APT::Sandbox::User=root"]
        run(["apt-get", *options, "update"], "the list of Debian's sources cannot be fetched")
        run(["apt-get", *options, "source", "lwip"], "Debian's source of lwIP cannot be fetched", cwd=folder)
        found = list(folder.glob("lwip-*/src/core/tcp.c"))
        if not found:
            raise Unavailable("Debian's source of lwIP has no src/core/tcp.c")
    return found[0].parents[2]


def debian_source_line():
    """Where the system has its packages from, as a line for sources."""
    release = "bookworm"
    for line in pathlib.Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            release = line.split("=", 1)[1]
    mirror = "http://deb.debian.org/debian"
    for line in run(["apt-get", "indextargets", "--format", "$(REPO_URI)"], "apt does not tell its sources").stdout.split():
        if "security" not in line and "debian" in line:
            mirror = line
            break
    return f"deb-src {mirror} {release} main\n"


def installed(program, package):
    path = shutil.which(program)
    if not path:
        raise Unavailable(f"Debian's {package} is not installed")
    return path
