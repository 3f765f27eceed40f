"""What processes and the machine spend, from /proc."""

import os
import pathlib
import time

TICK = os.sysconf("SC_CLK_TCK")
# Bytes of a dentry.
NAME = 192


def run_time(pids):
    """CPU seconds of all threads of the processes, to the nanosecond."""
    total = 0
    for pid in pids:
        for task in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(task.read_text().split()[0])
            except (FileNotFoundError, ProcessLookupError):
                pass
    return total / 1e9


def context_switches(pids):
    total = 0
    for pid in pids:
        for task in pathlib.Path(f"/proc/{pid}/task").glob("*/status"):
            for line in task.read_text().splitlines():
                if "ctxt_switches" in line:
                    total += int(line.split()[1])
    return total


def memory(pids):
    """Bytes of the processes that are in memory and theirs alone, shared memory counted once a process."""
    total = 0
    for pid in pids:
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def kernel_memory():
    """Bytes of the kernel's slabs: sockets, files and their buffers among them. Not those of looking at /proc: whatever lists the
    machine's descriptors makes an inode and a name for each there."""
    looked_at = 0
    for line in pathlib.Path("/proc/slabinfo").read_text().splitlines():
        words = line.split()
        if words[0] == "proc_inode_cache":
            looked_at = int(words[1]) * (int(words[3]) + NAME)
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Slab:"):
            return int(line.split()[1]) * 1024 - looked_at
    raise RuntimeError("/proc/meminfo has no Slab")


def descendants(pid):
    """The process and all its children, theirs too."""
    found = [pid]
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in task.read_text().split():
                found += descendants(int(child))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def machine_busy():
    """CPU seconds that the machine has spent on anything."""
    words = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    values = [int(word) / TICK for word in words]
    return values[0] + values[1] + values[2] + values[5] + values[6]


def wait_for_quiet(seconds, share=0.08):
    """Waits until the machine is busy for less than `share` of its time. False if it never was."""
    deadline = time.monotonic() + seconds
    while True:
        before, begin = machine_busy(), time.monotonic()
        time.sleep(0.25)
        if machine_busy() - before < share * (time.monotonic() - begin) * os.cpu_count():
            return True
        if time.monotonic() >= deadline:
            return False
