"""UDP datagrams a second, in batches of 32 (sendmmsg, recvmmsg), the sender going as fast as it can."""

import subprocess

import builds
import placement
from measures import PROGRAMS, Figure, Measure, kernel
from namespaces import wait_for_line
from paths import result_of

PORT = 5005


def datagrams(size, stack_sends):
    def run(path, settings):
        load = builds.load_program()
        receiver_place, sender_place = (path.peer, path.application) if stack_sends else (path.application, path.peer)
        receiver = receiver_place(load, "receive-datagrams", "--port", PORT, "--warm-up", settings.warm_up,
                                  "--seconds", settings.seconds, stderr=subprocess.PIPE)
        wait_for_line(receiver, "ready")
        # The sender goes on for as long as the receiver counts.
        sender = sender_place(
            load, "send-datagrams", "--port", PORT, "--size", size, "--seconds", settings.seconds + 2 * settings.warm_up + 0.5,
            "--host", path.kernel_address if stack_sends else path.stack_address, stderr=subprocess.PIPE)
        arrived = result_of(receiver, settings.seconds + 30)
        sent = result_of(sender, settings.seconds + 30)
        return {"arrived": arrived["rate"], "sent": sent["rate"]}
    return run


def figures():
    return (Figure("arrived", "arrived", "datagrams/s", targets=(kernel(0.5),), digits=0),
            Figure("sent", "sent", "datagrams/s", digits=0, detail=True))


DATAGRAM_MEASURES = [
    Measure(f"udp-{size}-{'sends' if stack_sends else 'receives'}",
            f"UDP, {size}-byte datagrams, stack {'sends' if stack_sends else 'receives'}", figures(),
            datagrams(size, stack_sends), PROGRAMS, placement.apart, quick=size == 64)
    for size in (64, 1400) for stack_sends in (True, False)
]
