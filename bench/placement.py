"""Which CPUs host, application and peer have."""

import os


def available():
    return sorted(os.sched_getaffinity(0))


def roles(host, application, peer):
    return {"host": {host}, "application": {application}, "peer": {peer}}


def same_cpu():
    """All three on one CPU: no wake-up crosses."""
    first = available()[0]
    return roles(first, first, first)


def across():
    """Host and application on one CPU, the peer on another."""
    cpus = available()
    return roles(cpus[0], cpus[0], cpus[1 % len(cpus)])


def apart(beside="host"):
    """Each on a CPU of its own; with two CPUs the application is beside the host, or beside the peer."""
    cpus = available()
    if len(cpus) >= 3:
        return roles(cpus[0], cpus[1], cpus[2])
    second = cpus[1 % len(cpus)]
    return roles(cpus[0], second if beside == "peer" else cpus[0], second)


def anywhere():
    """Nothing is pinned: the scheduler places all three, as it does for a user."""
    cpus = set(available())
    return {"host": cpus, "application": cpus, "peer": cpus}


def spare():
    """The host alone on a CPU, so that it may spin; application and peer apart if there are CPUs for that."""
    cpus = available()
    if len(cpus) >= 3:
        return roles(cpus[0], cpus[1], cpus[2])
    second = cpus[1 % len(cpus)]
    return roles(cpus[0], second, second)
