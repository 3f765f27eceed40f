"""The number that a thread puts into the locks of a shared page, which is how others tell that it has died."""

import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_thread_knows_its_number_in_every_kind_of_child(directory):
    program, sources = directory / "thread_number", ROOT / "Sources"
    include = [f"-I{path}" for path in (sources, sources / "ShimEntry" / "include", sources / "CLibc" / "include")]
    subprocess.run(["cc", "-O2", "-w", "-pthread", "-o", program, ROOT / "Tests/EndToEnd/programs/thread_number.c", *include],
                   check=True)
    # As the first process of a namespace, a second one's first process has the same number.
    result = subprocess.run(["unshare", "--pid", "--fork", program], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
