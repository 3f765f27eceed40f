"""docs/conformance.md names tests and packet scripts that exist, and no MUST is open."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "conformance.md"
LEVELS, STATES = {"M", "S", "O"}, {"done", "deviates", "open", "n/a"}


def rows():
    for number, line in enumerate(TABLE.read_text().splitlines(), 1):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and cells[0] != "Source" and not set(line) <= set("|- "):
            yield number, cells


def known_tests():
    """`Suite.function` of the Swift tests, `file.py::function` of the Python ones."""
    names = set()
    for path in (ROOT / "Tests").rglob("*.swift"):
        suite = None
        is_test = False
        for line in path.read_text().splitlines():
            if line.lstrip().startswith("//"):
                continue
            if found := re.match(r"(?:@\S+ |\w+ )*(?:struct|class|extension) (\w+)", line):
                suite = found[1]
            is_test = is_test or "@Test" in line
            if found := re.search(r"\bfunc (\w+)", line):
                if is_test:
                    names.add(f"{suite}.{found[1]}")
                is_test = False
    for path in (ROOT / "Tests").rglob("*.py"):
        names |= {f"{path.name}::{name}" for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
    return names


def test_every_row_is_whole_and_names_tests_that_exist():
    known = known_tests()
    found = list(rows())
    assert len(found) > 60
    for number, cells in found:
        assert len(cells) == 5, f"line {number}: five columns are needed"
        source, _, level, state, notes = cells
        assert level in LEVELS and state in STATES, f"line {number}: level '{level}', state '{state}'"
        named = re.findall(r"`([A-Z]\w+\.\w+|\w+\.py::\w+)`", notes)
        missing = [name for name in named if name not in known]
        scripts = re.findall(r"`([\w-]+/[\w-]+\.pkt)`", notes)
        missing += [name for name in scripts if not (ROOT / "Tests" / "Packets" / name).is_file()]
        named += scripts
        assert not missing, f"line {number} ({source}): no test is called {', '.join(missing)}"
        assert state != "done" or named, f"line {number} ({source}): what shows that it is done?"
        assert state == "done" or notes, f"line {number} ({source}): say why"


def test_no_must_is_open():
    assert [number for number, cells in rows() if cells[2] == "M" and cells[3] == "open"] == []
