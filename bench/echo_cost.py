#!/usr/bin/env python3
"""What one echoed message costs a server: user instructions (callgrind) and system calls (strace), vigil beside a bare epoll loop.

    bench/echo_cost.py PATH/TO/bench-echo-cost

Each number is the difference between a run of 20,000 and one of 2,000 messages over ten connections, so that starting up, accepting
and closing are not in it. "one by one": every message is a wake-up of its own; "ten at once": those that are ready together share one.
vigil: with a receive deadline on every connection; heartbeat: a heartbeat within 20 s besides; rates: a message deadline and a receive
rate instead of it; marked: each message's end marked besides.
"""
import re
import shutil
import subprocess
import sys
import tempfile

FEW, MANY = 2000, 20000


def instructions(program, server, messages, at_once):
    with tempfile.NamedTemporaryFile() as scratch:
        run = subprocess.run(["valgrind", "--tool=callgrind", f"--callgrind-out-file={scratch.name}", program, server, str(messages),
                              str(at_once)], capture_output=True, text=True, timeout=300)
    found = re.search(r"Collected : (\d+)", run.stderr)
    if run.returncode != 0 or not found:
        sys.exit(f"echo_cost: {server} under callgrind failed:\n{run.stderr}")
    return int(found.group(1))


def system_calls(program, server, messages, at_once):
    with tempfile.NamedTemporaryFile("r") as table:
        # Not -f: the client is a process of its own and is not counted.
        run = subprocess.run(["strace", "-c", "-o", table.name, program, server, str(messages), str(at_once)], capture_output=True,
                             text=True, timeout=300)
        if run.returncode != 0:
            sys.exit(f"echo_cost: {server} under strace failed:\n{run.stderr}")
        counts = {}
        for line in table.read().splitlines():
            fields = line.split()
            if len(fields) >= 5 and fields[3].isdigit():
                counts[fields[-1]] = int(fields[3])
    return counts


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: bench/echo_cost.py PATH/TO/bench-echo-cost")
    for tool in ("valgrind", "strace"):
        if shutil.which(tool) is None:
            sys.exit(f"echo_cost: {tool} is missing: apt-get install {tool}")
    program = sys.argv[1]
    print(f"{'':22}{'instructions':>14}{'system calls':>14}   of them")
    for at_once, name in ((1, "one by one"), (10, "ten at once")):
        for server in ("bare", "vigil", "heartbeat", "rates", "marked"):
            cost = (instructions(program, server, MANY, at_once) - instructions(program, server, FEW, at_once)) / (MANY - FEW)
            few, many = (system_calls(program, server, messages, at_once) for messages in (FEW, MANY))
            each = {call: (many[call] - few.get(call, 0)) / (MANY - FEW) for call in many if call != "total"}
            shown = ", ".join(f"{call} {count:.3f}" for call, count in sorted(each.items(), key=lambda pair: -pair[1]) if count >= 0.0005)
            print(f"{server + ', ' + name:22}{cost:14.1f}{sum(each.values()):14.3f}   {shown}", flush=True)


if __name__ == "__main__":
    main()
