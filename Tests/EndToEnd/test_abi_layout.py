"""The layout of every structure of the two contracts, compared with what was published (fixtures/abi-layout.txt).

After a change that is meant: ALPS_WRITE_LAYOUT=1 pytest Tests/EndToEnd/test_abi_layout.py. Only appending to a structure
that carries its size, or a new structure, is compatible (a new minor version); anything else needs a new major one.
"""

import os
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = [ROOT / "Sources" / "PluginAPI" / "include", ROOT / "Sources" / "ClientAPI" / "include"]
GOLDEN = pathlib.Path(__file__).parent / "fixtures" / "abi-layout.txt"


def split(body):
    """Declarations of a structure's body, those of nested ones taken whole."""
    depth, start = 0, 0
    for place, char in enumerate(body):
        depth += (char in "{(") - (char in "})")
        if char == ";" and depth == 0:
            yield body[start:place].strip()
            start = place + 1


def fields(body):
    for declaration in split(body):
        if not declaration:
            continue
        if nested := re.match(r"(?:union|struct)\s*\{(.*)\}\s*(\w*)$", declaration, re.S):
            if nested[2]:
                yield nested[2]
            else:
                yield from fields(nested[1])
        elif function := re.match(r"[^(]*\(\s*\*\s*(?:_Nullable|_Nonnull)?\s*(\w+)\s*\)", declaration):
            yield function[1]
        elif returning := re.search(r"\(\s*\*\s*(?:_Nullable|_Nonnull)\s+(\w+)\)\s*\(", declaration):
            yield returning[1]
        else:
            for part in declaration.split(","):
                yield re.search(r"(\w+)\s*(?:\[[^\]]*\]\s*)*$", part)[1]


def structures():
    """(header, structure, fields), in the order of the headers."""
    for folder in FOLDERS:
        for header in sorted(folder.rglob("*.h")):
            text = re.sub(r"//[^\n]*|/\*.*?\*/", "", header.read_text(), flags=re.S)
            for found in re.finditer(r"typedef struct \w*\s*\{", text):
                depth, place = 1, found.end()
                while depth:
                    depth += (text[place] == "{") - (text[place] == "}")
                    place += 1
                name = re.match(r"\s*(\w+)\s*;", text[place:])
                if name:
                    yield header.relative_to(folder), name[1], list(fields(text[found.end():place - 1]))


def layout(directory):
    lines = ["#include <stdio.h>", "#include <stddef.h>", "#include <alps/alps.h>", "#include <alps-client/client.h>",
             "#include <alps-client/stream-ring.h>",
             "int main(void) {"]
    for header, name, names in structures():
        lines.append(f'printf("{header} {name} %zu\\n", sizeof({name}));')
        lines += [f'printf("    {field} %zu %zu\\n", offsetof({name}, {field}), sizeof((({name} *)0)->{field}));'
                  for field in names]
    source = directory / "layout.c"
    source.write_text("\n".join([*lines, "}"]))
    includes = [f"-I{folder}" for folder in FOLDERS]
    subprocess.run(["cc", *includes, "-o", directory / "layout", source], check=True)
    return subprocess.run([directory / "layout"], check=True, capture_output=True, text=True).stdout


def test_no_published_structure_has_changed(directory):
    found = layout(directory)
    assert found.count("\n") > 300 and "alps_mbuf " in found and "alps_frame 40" in found
    if os.environ.get("ALPS_WRITE_LAYOUT"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(found)
    golden = GOLDEN.read_text()
    changed = sorted(set(golden.splitlines()) ^ set(found.splitlines()))
    assert found == golden, f"changed, see the top of this file: {changed[:20]}"
