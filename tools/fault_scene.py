"""One row of tools/faults, done: a network, vigil and its peer on it, the fault, and what vigil said."""

import dataclasses
import json
import pathlib
import random
import sys
import threading
import time

import fault_rows
from fault_network import FAR, NEAR, Broken, Network, Program

PEER = pathlib.Path(__file__).with_name("fault_peer.py")
PORT = 7000
GRACE = 1.0  # what a verdict may take beyond the budget, and keepalive, which counts in whole seconds
BUSY = 1.0  # what this machine may be late
DISTURBED = 0.1  # a stop that lasted so much too long was none of what the row is about
AT_THE_BUDGET = 0.05  # told later than that it was told in the grace

set_up_at_once = threading.Semaphore(4)  # more would only wait for each other


class Disturbed(Exception):
    """This machine was too slow for what was to happen: it proves nothing."""


@dataclasses.dataclass
class Outcome:
    row: object
    role: str
    seed: int
    budget: float = 0.0
    interval: float = 0.0
    said: str = ""
    problem: str = ""  # what is wrong with it; empty: right
    after: float | None = None  # from the fault to the report
    late: float | None = None  # silence beyond the budget
    record: dict | None = None

    def in_grace(self):
        return (self.after - self.budget if self.late is None else self.late) > AT_THE_BUDGET

    def as_json(self):
        names = ("role", "seed", "budget", "interval", "said", "problem", "after", "late", "record")
        members = {name: getattr(self, name) for name in names}
        return json.dumps({"fault": self.row.name, "expected": self.row.told, **members})


class Scene:
    def __init__(self, row, role, seed, budgets, programs):
        self.row, self.role, self.programs = row, role, programs
        self.random = random.Random(f"{seed} {row.name} {role}")
        self.budget = round(self.random.uniform(*budgets) * row.stretch, 3)
        least, most = (part * self.budget for part in row.intervals)
        self.interval = round(self.random.uniform(least, max(least, min(most, self.budget - 1.5))), 3)
        self.network = self.vigil = self.peer = None

    def lasted(self, seconds, meant):
        if seconds > meant + DISTURBED:
            raise Disturbed(f"{seconds:.3f} s instead of {meant:.3f} s")

    def begin(self):
        self.network = Network()
        if self.row.flood:
            self.network.narrow(self.random.randrange(4_000_000, 16_000_000))
        options = [f"{name}={value}" for name, value in self.row.peer(self).items()]
        peer = [sys.executable, "-I", "-S", PEER]
        heartbeat = [f"--heartbeat-timeout={1000 * self.budget:.0f}ms"]
        heartbeat += ["--keepalive-only"] if self.row.keepalive else [f"--heartbeat-interval={1000 * self.interval:.0f}ms"]
        vigil = ["--json", *heartbeat, *(["--flood"] if self.row.flood else [])]
        until = time.monotonic() + 60
        if self.role == "client":
            self.peer = Program(self.network.far, *peer, "listen", FAR, PORT, *options)
            self.peer.expect("ready")
            self.vigil = Program(self.network.near, self.programs["probe"], f"{FAR}:{PORT}", "--hold", *vigil)
        else:
            self.vigil = Program(self.network.near, self.programs["echo"], "--listen", f"{NEAR}:{PORT}", *vigil)
            if not self.vigil.event("listening", until):
                raise Broken("vigil-echo does not listen")
            self.peer = Program(self.network.far, *peer, "connect", NEAR, PORT, *options)
        self.peer.expect("connected", 60)
        if not self.vigil.event("opened", until):
            raise Broken("no connection was made")

    def play(self, outcome):
        with set_up_at_once:
            self.begin()
        fault_rows.sleep_until(time.monotonic() + self.random.uniform(0.1, 1) * self.budget)
        began = time.monotonic()
        self.row.inject(self)
        done = time.monotonic()
        expects_nothing = self.row.told == fault_rows.NOTHING
        patience = self.row.watch * self.budget if expects_nothing else self.budget + GRACE + 10 * BUSY
        closed = self.vigil.event("closed", done + patience)
        if closed is None:
            outcome.said = fault_rows.NOTHING
            outcome.problem = "" if expects_nothing else f"nothing was said for {patience:.1f} s"
            return
        outcome.record = closed
        outcome.said = closed["reason"] + (f", {closed['verdict']}" if closed["reason"] == "heartbeat_lost" else "")
        told = closed["time_ns"] * 1e-9
        outcome.after = max(told - done, 0)
        self.judge(outcome, told - began)

    def judge(self, outcome, since_it_began):
        row, record = self.row, outcome.record
        lost = record["reason"] == "heartbeat_lost"
        if lost and (record["evidence"] or not row.flood):
            # With a flood the last sign of life is an acknowledgement, which may come after the fault: a kernel goes on for a
            # process that reads no more, until its buffer is full.
            silent = record["evidence"]["without_progress_ms"] if row.flood else record["silent_ms"]
            outcome.late = silent / 1000 - self.budget
        if outcome.said != row.told:
            outcome.problem = f"told {outcome.said}, expected {row.told}"
        elif lost and (outcome.late is None or outcome.late < 0):
            outcome.problem = "told without evidence" if outcome.late is None else f"told {-outcome.late:.3f} s before its time"
        elif lost and since_it_began < self.budget - self.interval - AT_THE_BUDGET:
            outcome.problem = f"told {since_it_began:.3f} s after the fault, the budget is {self.budget} s"
        elif outcome.after > self.limit(lost) + BUSY:
            outcome.problem = f"told {outcome.after:.3f} s after the fault"

    def limit(self, lost):
        """How long after the fault it must be told; the last sign of life came no later, or hardly."""
        if self.row.at_once:
            return 0
        return self.budget + (GRACE if lost or self.row.keepalive else 0)

    def close(self):
        for program in (self.vigil, self.peer):
            if program is not None:
                program.end()
        if self.network is not None:
            self.network.close()


def run_row(row, role, seed, budgets, programs):
    """Its outcome. In a thread of the caller's, which has entered some namespace afterwards."""
    for last_try in (False, False, True):
        scene = Scene(row, role, seed, budgets, programs)
        outcome = Outcome(row, role, seed, scene.budget, scene.interval)
        try:
            scene.play(outcome)
        except Disturbed as problem:
            outcome.said, outcome.problem = "disturbed", f"this machine was too slow, three times: {problem}"
            if not last_try:
                continue
        except (Broken, OSError, ValueError, KeyError) as problem:
            outcome.said, outcome.problem = "broken", f"{type(problem).__name__}: {problem}"
        finally:
            scene.close()
        return outcome
    return None
