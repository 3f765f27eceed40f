"""Sources of Debian's packages, unpacked and built in a cache folder outside the tree (ALPS_TEST_CACHE, else below
~/.cache). The machine's own configuration of apt is read, never changed."""

import os
import pathlib
import shutil
import subprocess
import tempfile

import pytest

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
CACHE = pathlib.Path(os.environ.get("ALPS_TEST_CACHE") or pathlib.Path.home() / ".cache" / "alps-tests")


def _run(argv, **options):
    result = subprocess.run(list(map(str, argv)), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            stdin=subprocess.DEVNULL, **options)
    assert result.returncode == 0, f"{argv}\n{result.stdout[-3000:]}"
    return result.stdout


def _source_lines():
    """The archives that the machine takes its packages from, as archives of sources."""
    rows = _run(["apt-get", "indextargets", "--format", "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)",
                 "Created-By: Packages"]).splitlines()
    lines = set()
    for row in rows:
        origin, uri, release, component = row.split("|")
        # What -security has comes to the release itself with its next point release.
        if origin == "Debian" and not release.endswith("-security"):
            key = f"[signed-by={KEYRING}] " if os.path.exists(KEYRING) else ""
            lines.add(f"deb-src {key}{uri} {release} {component}")
    assert lines, rows
    return sorted(lines)


def _download(package, folder):
    """Unpacks the source of a package as `folder`. Skips the test if the archive cannot be reached."""
    with tempfile.TemporaryDirectory(prefix="alps-apt-") as place:
        place = pathlib.Path(place)
        for each in ("state/lists/partial", "cache/archives/partial", "source"):
            (place / each).mkdir(parents=True)
        (place / "sources.list").write_text("\n".join(_source_lines()) + "\n")
        apt = ["apt-get", "-q", "-o", f"Dir::Etc::sourcelist={place}/sources.list", "-o", "Dir::Etc::sourceparts=/dev/null",
               "-o", f"Dir::State={place}/state", "-o", "Dir::State::status=/var/lib/dpkg/status",
               "-o", f"Dir::Cache={place}/cache", "-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=root",
               "-o", "Acquire::Retries=2", "-o", "APT::Update::Error-Mode=any"]
        update = subprocess.run([*apt, "update"], text=True, capture_output=True, stdin=subprocess.DEVNULL)
        if update.returncode != 0:
            pytest.skip(f"Debian's archive cannot be reached: {update.stderr.strip().splitlines()[-1]}")
        _run([*apt, "source", package], cwd=place / "source")
        unpacked = [each for each in (place / "source").iterdir() if each.is_dir()]
        assert len(unpacked) == 1, unpacked
        shutil.move(str(unpacked[0]), folder)


def built(package, build):
    """The folder in which `build(source, folder)` has built Debian's source of `package`: kept from run to run."""
    release = _run(["sh", "-c", ". /etc/os-release; echo ${VERSION_CODENAME}"]).strip()
    folder = CACHE / f"{package}-{release}"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "build").mkdir(parents=True)
        _download(package, folder / "source")
        build(folder / "source", folder / "build")
        (folder / "done").touch()
    # Some of the programs run as other users.
    for each in (folder, *folder.parents):
        if each.stat().st_mode & 0o5 != 0o5 and CACHE in (each, *each.parents):
            each.chmod(0o755)
    return folder


def cmake(*options, targets):
    """A build by CMake, of these targets."""
    def build(source, folder):
        _run(["cmake", "-DCMAKE_BUILD_TYPE=Release", *options, source], cwd=folder)
        _run(["make", "-j2", *targets], cwd=folder)
    return build


def without_names(directory):
    """In front of a program: names are asked of nobody, since the nameserver of this machine cannot be reached from the
    namespace."""
    (directory / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    return ["unshare", "-m", "sh", "-c", f"mount --bind {directory}/resolv.conf /etc/resolv.conf; exec \"$@\"", "sh"]
