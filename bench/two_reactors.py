#!/usr/bin/env python3
"""One reactor and two under the same load: throughput, and the share of the processors each process got.

    bench/two_reactors.py BUILD-DIRECTORY [--rounds N] [--seconds N] [--connections N] [--pipeline N]

Each round runs vigil-echo with one reactor and with two, in turns which of them comes first, against two vigil-load processes. The
processor time is utime + stime of /proc/PID/stat over the measured seconds; 100 % is one processor. What the three processes did not
get went to somebody else, or was idle. The ratio is that of two reactors to one in the same round; its median is the figure.
"""
import argparse
import collections
import json
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time

WARM_UP = 1.0  # seconds
MARGIN = 0.2  # seconds: processor time is read this long after measuring began, and before it ends
PATIENCE = 30.0  # seconds until something that must happen counts as never happening
TICKS = os.sysconf("SC_CLK_TCK")


def fail(what):
    sys.exit(f"two_reactors: {what}")


def processor_seconds(process):
    with open(f"/proc/{process.pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()  # the name before it may hold anything
    return (int(fields[11]) + int(fields[12])) / TICKS


def idle_seconds():
    with open("/proc/stat") as stat:
        fields = stat.readline().split()
    return (int(fields[4]) + int(fields[5])) / TICKS


class Echo:
    """vigil-echo with so many reactors; counts the connections each of them opened."""

    def __init__(self, program, reactors):
        command = [program, "--listen", "127.0.0.1:0", "--reactors", str(reactors), "--json"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.opened = collections.Counter()
        self.address = None
        self.listening = threading.Event()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] == "opened":
                self.opened[event["reactor"]] += 1
            if event["event"] == "listening" and self.address is None:
                self.address = event["address"]
                self.listening.set()
        self.listening.set()

    def wait_until_it_listens(self):
        if not self.listening.wait(PATIENCE) or self.address is None:
            self.stop()
            fail(f"vigil-echo does not listen: {self.process.stderr.read().strip()}")
        return self.address

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join(PATIENCE)


def start_load(program, address, options):
    command = [program, address, "--connections", str(options.connections), "--pipeline", str(options.pipeline), "--duration",
               f"{options.seconds:g}s", "--warmup", f"{WARM_UP:g}s", "--json"]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result_of(load, options):
    try:
        output, errors = load.communicate(timeout=options.seconds + WARM_UP + PATIENCE)
    except subprocess.TimeoutExpired:
        fail("vigil-load does not end")
    results = [event for event in map(json.loads, output.splitlines()) if event["event"] == "result"]
    if load.returncode != 0 or len(results) != 1 or results[0]["errors"] != 0:
        fail(f"vigil-load failed with status {load.returncode}: {errors.strip()} {output.strip()}")
    return results[0]


def measure(build, reactors, options):
    echo = Echo(build / "vigil-echo", reactors)
    loads = []
    try:
        address = echo.wait_until_it_listens()
        loads = [start_load(build / "vigil-load", address, options) for _ in range(2)]
        processes = [echo.process, *loads]
        time.sleep(WARM_UP + MARGIN)
        began, idle_before = time.monotonic(), idle_seconds()
        before = [processor_seconds(process) for process in processes]
        time.sleep(options.seconds - 2 * MARGIN)
        after = [processor_seconds(process) for process in processes]
        seconds, idle = time.monotonic() - began, idle_seconds() - idle_before
        results = [result_of(load, options) for load in loads]
    finally:
        for load in loads:
            if load.poll() is None:
                load.kill()
                load.wait()
        echo.stop()
    return {
        "rate": sum(result["messages"] / result["seconds"] for result in results),
        "p99_ms": max(result["p99_ns"] for result in results) / 1e6,
        "shares": [(late - early) / seconds for early, late in zip(before, after)],
        "idle": idle / seconds,
        "opened": [echo.opened[index] for index in range(reactors)],
    }


def percent(share):
    return f"{100 * share:.0f} %"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=32, help="of each of the two loads")
    parser.add_argument("--pipeline", type=int, default=1)
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds < 1 or options.connections < 1 or options.pipeline < 1:
        fail("each number must be 1 or more")
    processors = len(os.sched_getaffinity(0))
    print(f"{processors} processors, load average {os.getloadavg()[0]:.2f}; two loads of {options.connections} connections, "
          f"pipeline {options.pipeline}; {options.rounds} rounds of {options.seconds:g} s")
    print(f"{'':8}{'reactors':>8}{'messages/s':>13}{'p99, ms':>10}{'server':>9}{'loads':>17}{'others':>9}{'idle':>8}   connections")
    rounds = []
    for index in range(options.rounds):
        one_round = {}
        for reactors in (1, 2) if index % 2 == 0 else (2, 1):
            run = one_round[reactors] = measure(options.build, reactors, options)
            server, *loads = run["shares"]
            others = run["others"] = max(processors - sum(run["shares"]) - run["idle"], 0)
            print(f"{'round ' + str(index + 1):8}{reactors:8}{run['rate']:13,.0f}{run['p99_ms']:10.2f}{percent(server):>9}"
                  f"{' + '.join(percent(share) for share in loads):>17}{percent(others):>9}{percent(run['idle']):>8}   "
                  f"{' + '.join(map(str, run['opened']))}", flush=True)
        rounds.append(one_round)
    for reactors in (1, 2):
        runs = [one_round[reactors] for one_round in rounds]
        print(f"median, {reactors} reactor{'s' if reactors > 1 else ''}: {statistics.median(run['rate'] for run in runs):,.0f} messages/s, "
              f"server {percent(statistics.median(run['shares'][0] for run in runs))}, "
              f"loads {percent(statistics.median(sum(run['shares'][1:]) for run in runs))} of {percent(processors)}")
    ratios = sorted(one_round[2]["rate"] / one_round[1]["rate"] for one_round in rounds)
    per_server_second = sorted((one_round[2]["rate"] / one_round[2]["shares"][0]) / (one_round[1]["rate"] / one_round[1]["shares"][0])
                               for one_round in rounds)
    print(f"two reactors to one: median {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}; "
          f"per second of the server's processor time {statistics.median(per_server_second):.2f}")
    disturbed = statistics.median(run["others"] for one_round in rounds for run in one_round.values())
    if disturbed > 0.05 * processors:
        print(f"somebody else got {percent(disturbed)} of {percent(processors)}: run it again on an idle machine")
    if processors < 4:
        print(f"{processors} processors for two reactors and two loads: a second reactor takes its time from the loads, so this is no "
              "measure of how vigil scales")


if __name__ == "__main__":
    main()
