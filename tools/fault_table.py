#!/usr/bin/env python3
"""Injects the faults of a network, of hosts and of processes into vigil's connections, and shows what vigil said of each.

tools/faults builds the programs and runs this; see `tools/faults --help`. The last line is `N passed, N failed`.
"""

import argparse
import concurrent.futures
import math
import os
import pathlib
import random
import re
import signal
import statistics
import sys
import threading
import time

import fault_loss
import fault_network
import fault_rows
import fault_scene

USAGE, NEEDS_ROOT = 64, 77
UNKNOWN_ALLOWED = 0.01  # of the faults; an unknown is no wrong verdict


class Progress:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, total):
        self.total, self.done, self.began = total, 0, time.monotonic()
        self.shown = sys.stderr.isatty()
        self.show()

    def step(self):
        self.done += 1
        self.show()

    def show(self):
        if self.shown:
            filled = 40 * self.done // self.total
            seconds = time.monotonic() - self.began
            bar = f"[{'#' * filled}{'.' * (40 - filled)}]"
            print(f"\r{bar} {self.done}/{self.total}  {seconds:.0f} s ", end="", file=sys.stderr, flush=True)

    def clear(self):
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def span(values, unit, scale=1):
    if not values:
        return "-"
    low, high = (f"{scale * value:.1f}" for value in (min(values), max(values)))
    return f"{low} {unit}" if low == high else f"{low}-{high} {unit}"


def within_budget(row, outcomes):
    told = [each for each in outcomes if each.after is not None]
    if row.told == fault_rows.NOTHING or not told:
        return "-"
    over = sum(each.in_grace() for each in told)
    late = "in whole seconds" if row.keepalive else "in the grace"  # which is how keepalive counts
    return "yes" if over == 0 else f"{over} of {len(told)} {late}"


def counted(outcomes):
    """What was said, and how often where it was not always the same."""
    said = [each.said for each in outcomes]
    kinds = sorted(set(said), key=said.count, reverse=True)
    return kinds[0] if len(kinds) == 1 else "; ".join(f"{said.count(kind)} x {kind}" for kind in kinds)


def show_table(outcomes):
    rows = [("fault", "what vigil said", "expected", "after how long", "within budget", "")]
    for row in fault_rows.ROWS:
        mine = [each for each in outcomes if each.row is row]
        if mine:
            after = span([each.after for each in mine if each.after is not None], "s")
            right = "right" if not any(each.problem for each in mine) else "WRONG"
            rows.append((row.name, counted(mine), row.told, after, within_budget(row, mine), right))
    widths = [max(len(line[column]) for line in rows) for column in range(6)]
    for number, line in enumerate(rows):
        print("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths[:5]))


def quantile(values, part):
    return sorted(values)[max(math.ceil(part * len(values)) - 1, 0)]


def show_summary(outcomes, allowed_unknown):
    faults = [each for each in outcomes if each.row.told.startswith("heartbeat_lost")]
    unknown = [each for each in faults if each.said == fault_rows.UNDECIDED]
    wrong = [each for each in outcomes if each.problem and each not in unknown]
    print(f"\n{len(outcomes)} connections, {len(faults)} faults for a heartbeat: {len(wrong)} wrong, {len(unknown)} unknown")
    late = [1000 * each.late for each in faults if each.late is not None and not each.problem]
    if late:
        load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
        quantiles = f"{statistics.median(late):.1f} ms (p50), {quantile(late, 0.99):.1f} ms (p99)"
        print(f"told after the budget's end by {quantiles}; load average {load}")
    too_many = len(unknown) > allowed_unknown
    for each in wrong + unknown:
        print(f"\n{'unknown' if each in unknown else 'WRONG'}: {each.row.name}, vigil as {each.role}: {each.problem}")
        print(f"  budget {each.budget} s, interval {each.interval} s")
        print(f"  again: tools/faults --seed {each.seed} --only \"{each.row.name}\"")
        if each.record:
            print(f"  {each.as_json()}")
    failed = len(wrong) + (len(unknown) if too_many else 0)
    return len(outcomes) - failed, failed


def seconds_of(text):
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is not a duration, as in 500ms, 4s, 2m")
    return float(match[1]) * {"ms": 0.001, "s": 1, "m": 60}[match[2]]


def budgets_of(text):
    budgets = [seconds_of(each) for each in text.split("-")]
    if len(budgets) > 2 or budgets[0] > budgets[-1] or budgets[0] < 2.5:
        raise argparse.ArgumentTypeError(f"'{text}' is not a budget from 2.5s, or a range of them, as in 3s-5s")
    return budgets[0], budgets[-1]


class Parser(argparse.ArgumentParser):
    def error(self, message):
        print(f"faults: {message} (see tools/faults --help)", file=sys.stderr)
        sys.exit(USAGE)


def parse(arguments):
    parser = Parser(
        prog="tools/faults",
        description="Injects the faults of networks, hosts and processes into connections that vigil watches, as client and as"
        " server, with a real kernel's packets; also what a connection is to survive. Shows what vigil said of each. Needs root, for"
        " network namespaces; leaves none behind.",
        epilog="Exit status: 0 all of it is right, 1 something was wrong, 64 a wrong option, 77 not root.",
    )
    parser.add_argument("build", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, metavar="N", help="budgets, intervals and moments are drawn from this (random)")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="so often, each with the next seed (1)")
    parser.add_argument("--budget", type=budgets_of, default=(3.0, 5.0), metavar="D[-D]", help="the heartbeat's budget (3s-5s)")
    parser.add_argument("--only", action="append", metavar="ROW", help="only faults with this in their name; may be given again")
    parser.add_argument("--at-once", type=int, default=48, metavar="N", help="so many connections at the same time (48)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line for each connection, instead of the table")
    parser.add_argument("--loss", action="store_true", help="instead: many connections under 10 %% random loss")
    parser.add_argument("--connections", type=int, default=200, metavar="N", help="with --loss: so many for each budget (200)")
    parser.add_argument("--duration", type=seconds_of, default=600.0, metavar="D", help="with --loss: for so long (10m)")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.at_once, options.connections) < 1:
        parser.error("--rounds, --at-once and --connections are at least 1")
    rows = [row for row in fault_rows.ROWS if not options.only or any(each in row.name for each in options.only)]
    if not rows:
        parser.error(f"--only: no row has '{options.only[0]}' in its name")
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1_000_000)
    return options, rows


def run_all(options, rows, programs):
    seeds = range(options.seed, options.seed + options.rounds)
    jobs = [(row, role, seed) for seed in seeds for row in rows for role in ("client", "server")]
    jobs.sort(key=lambda job: (job[2], -job[0].stretch * job[0].watch))  # what takes long begins early
    progress, outcomes = Progress(len(jobs)), []
    with concurrent.futures.ThreadPoolExecutor(min(options.at_once, len(jobs))) as threads:
        pending = [threads.submit(fault_scene.run_row, *job, options.budget, programs) for job in jobs]
        for done in concurrent.futures.as_completed(pending):
            outcomes.append(done.result())
            if options.json:
                print(outcomes[-1].as_json(), flush=True)
            progress.step()
    progress.clear()
    return outcomes


def leave(number):
    """At once: threads that sleep would be waited for. What they started is ended first; the kernel would do so too."""
    try:
        fault_network.kill_all()
        print("\ninterrupted", file=sys.stderr, flush=True)
    finally:
        os._exit(128 + number)


def leave_when_told():
    """At SIGINT and SIGTERM, whichever thread the kernel gives them to.

    Python's handlers run in the main thread, which sleeps on if another one takes the signal. That happens: a thread that starts a
    program blocks signals meanwhile, and when it unblocks them may take one that the main thread was to wake up for. Whichever
    takes it writes its number to the wakeup descriptor.
    """
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # not their default: to raise in the main thread, to end this program
    threading.Thread(target=lambda: leave(os.read(told, 1)[0]), daemon=True).start()


def main():
    options, rows = parse(sys.argv[1:])
    if os.geteuid() != 0 or not fault_network.can_make_namespaces():
        print("skipped: needs root (network namespaces)")
        return NEEDS_ROOT
    build = pathlib.Path(options.build).resolve()
    programs = {name: str(build / f"vigil-{name}") for name in ("echo", "probe")}
    leave_when_told()
    if options.loss:
        return fault_loss.run(options, programs)
    if not options.json:
        least, most = options.budget
        print(f"seed {options.seed}; budgets from {least:g} to {most:g} s; vigil as client and as server\n", flush=True)
    outcomes = run_all(options, rows, programs)
    faults = sum(each.row.told.startswith("heartbeat_lost") for each in outcomes)
    if options.json:
        return 1 if any(each.problem for each in outcomes) else 0
    show_table(outcomes)
    passed, failed = show_summary(outcomes, max(1, math.floor(UNKNOWN_ALLOWED * faults)))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
