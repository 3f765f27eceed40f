"""kill -9 at random points of two hundred clients. ALPS_FAULT_SECONDS says for how long: 600 for a real run."""

import os

from killing import kill_at_random

SECONDS = float(os.environ.get("ALPS_FAULT_SECONDS", 60))


def test_two_hundred_clients_killed_at_random_leave_nothing(stack, directory):
    figures = kill_at_random(stack, directory, SECONDS, clients=200, seed=int(os.environ.get("ALPS_FAULT_SEED", 1)))
    print(figures)
    # How many there are depends on what else the machine does.
    assert figures["killed"] > SECONDS
    assert figures["bystander"] > 100_000
    assert figures["rings"] > 0
    before, after = figures["descriptors"]
    assert after <= before + 4, figures
