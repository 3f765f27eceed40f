"""docs/man/alps.1 says what the program says of itself; scripts/manual makes it anew."""

import json
import re
import subprocess

from conftest import ALPS, ROOT

PAGE = ROOT / "docs" / "man" / "alps.1"


def walk(command, path=()):
    path = (*path, command["commandName"])
    yield path, command
    for subcommand in command.get("subcommands", []):
        yield from walk(subcommand, path)


def test_the_manual_page_agrees_with_the_program():
    text = PAGE.read_text()
    commands = list(walk(json.loads(subprocess.check_output([ALPS, "--experimental-dump-help"]))["command"]))
    assert len(commands) > 20
    names, options, abstracts = set(), set(), []
    for path, command in commands:
        names.add(path[-1])
        abstracts.append(command.get("abstract") or "")
        for argument in command.get("arguments", []):
            if argument["shouldDisplay"]:
                options |= {name["name"] for name in argument.get("names") or [] if name["kind"] == "long"}
                abstracts.append(argument.get("abstract") or "")
    items = [line for line in text.splitlines() if line.startswith(".It ")]
    assert {line.split()[2] for line in items if line.startswith(".It Em ")} == names - {"alps"}
    assert {found for line in items if " Fl " in line for found in re.findall(r"(?<!\S)-([a-z][a-z0-9-]+)", line)} == options
    # Escapes of the page's language apart, every sentence is there.
    plain = re.sub(r"\s+", " ", text.replace("\\e", "\\").replace("\\&", "").replace("\\-", "-"))
    missing = [abstract for abstract in abstracts if re.sub(r"\s+", " ", abstract).strip() not in plain]
    assert missing == []
