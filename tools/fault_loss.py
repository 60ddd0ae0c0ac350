"""Many connections under 10 % random loss, each watched with a heartbeat: how many live peers are told as lost.

A lost segment is sent again by TCP after a time that doubles with each loss in a row (0.2, 0.4, 0.8, 1.6 s and so on, on a short
path). A budget survives as many losses in a row as fit into what an interval leaves of it; so a short one sometimes runs out on a
peer that lives, and a longer one practically never.
"""

import concurrent.futures
import sys
import threading
import time

import fault_scene
from fault_network import FAR, NEAR, Broken, Network, Program

LOSS = "numgen random mod 10 < 1 drop"  # each way
BUDGETS = (20.0, 5.0)
SETTLED = 60  # seconds for all of them to connect


def watch(budget, options, programs, progress):
    """The records of the connections that were closed, and how many there were."""
    network = Network()
    vigil = peer = None
    try:
        vigil = Program(network.near, programs["echo"], "--listen", f"{NEAR}:7000", "--json", f"--heartbeat-timeout={budget:g}s")
        if not vigil.event("listening", time.monotonic() + SETTLED):
            raise Broken("vigil-echo does not listen")
        command = [sys.executable, "-I", "-S", fault_scene.PEER, "connect", NEAR, 7000, f"connections={options.connections}"]
        peer = Program(network.far, *command)
        peer.expect("connected", SETTLED)
        network.forward(LOSS)
        records = []
        until = time.monotonic() + options.duration
        while (now := time.monotonic()) < until:
            closed = vigil.event("closed", min(until, now + 1))
            if closed:
                records.append(closed)
            progress(budget, now - until + options.duration)
        return records
    finally:
        for program in (vigil, peer):
            if program is not None:
                program.end()
        network.close()


def run(options, programs):
    """The exit status: 0 if the longest budget lost nobody."""
    lock, far = threading.Lock(), {}

    def progress(budget, seconds):
        if sys.stderr.isatty():
            with lock:
                far[budget] = seconds
                print(f"\r{min(far.values()):.0f} of {options.duration:.0f} s ", end="", file=sys.stderr, flush=True)

    minutes = options.duration / 60
    print(f"{options.connections} connections for each budget, {minutes:g} minutes; each way loses 10 % of packets", flush=True)
    with concurrent.futures.ThreadPoolExecutor(len(BUDGETS)) as threads:
        pending = {budget: threads.submit(watch, budget, options, programs, progress) for budget in BUDGETS}
        told = {budget: each.result() for budget, each in pending.items()}
    print("\r\033[K" if sys.stderr.isatty() else "", end="", file=sys.stderr, flush=True)
    for budget, records in told.items():
        print(f"\nbudget {budget:g} s: {len(records)} live peers told as lost")
        for record in records:
            evidence = record["evidence"] or {}
            seen = ", ".join(
                f"{name.replace('_', ' ')} {evidence.get(name)}"
                for name in ("unacknowledged_segments", "retransmits", "retransmits_in_silence", "retransmit_timeout_ms")
            )
            print(f"  {record['peer']}: {record['reason']}, {record['verdict']}, silent {record['silent_ms']:.0f} ms; {seen}")
    failed = len(told[max(BUDGETS)])
    print("\nA budget runs out on a live peer where so many tries in a row are lost that TCP's next one comes too late.")
    print(f"{failed} failed: the budget of {max(BUDGETS):g} s is to lose nobody")
    return 1 if failed else 0
