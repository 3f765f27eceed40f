"""`alps torture` as people and continuous integration call it."""

import json
import subprocess

from conftest import ALPS


def run(*arguments, timeout=150):
    return subprocess.run(
        [ALPS, "torture", *map(str, arguments)], capture_output=True, text=True, timeout=timeout)


def test_two_thousand_seeds_pass():
    done = run("--seeds", 2000)
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("2000 seeds: 2000 passed, 0 failed;")


def test_workers_run_each_seed_once_and_the_same():
    def traces(*arguments):
        lines = run("--json", *arguments).stdout.splitlines()
        reports = [json.loads(line) for line in lines]
        seeds = [report["seed"] for report in reports]
        assert sorted(seeds) == list(range(500, 540))
        return {report["seed"]: report["trace"] for report in reports}

    assert traces("--first", 500, "--seeds", 40, "--jobs", 1) == traces("--first", 500, "--seeds", 40, "--jobs", 3)


def test_failing_seed_is_named_and_can_be_replayed():
    done = run("--seeds", 5, "--sabotage", "lostBuffer")
    assert done.returncode == 1
    assert "seed 3 fails:" in done.stdout
    assert "mbufs are left" in done.stdout
    assert "replay: alps torture --seed 3 --verbose" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("failing seeds: 1 2 3 4 5")


def test_verbose_shows_plan_and_packets():
    done = run("--seed", 3, "--verbose")
    assert done.returncode == 0, done.stdout
    assert "seed 3: " in done.stdout
    assert "Flags [S], seq " in done.stdout
    assert done.stdout == run("--seed", 3, "--verbose").stdout


def test_quiet_says_nothing_of_what_passes():
    done = run("--seeds", 20, "--quiet")
    assert (done.returncode, done.stdout) == (0, "")


def test_bad_options_are_refused():
    assert "--verbose goes with --seed" in run("--verbose").stderr
    assert "--sabotage is one of" in run("--sabotage", "nothing").stderr
    assert run("--seeds", 0).returncode != 0
