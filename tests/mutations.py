#!/usr/bin/env python3
"""Breaks ten of the library's rules on purpose, one at a time, and shows what notices: the simulation, and which tests.

`tests/mutations.py [NAME ...]` works on a copy of the tree under .build/mutations and leaves the tree alone. Each mutation is one
or two replacements in one source; each must fit exactly once, so that a change of the code makes this list fail and not lie. Prints a line
for each, and exits 1 if one was noticed by nobody. A few minutes; not part of tools/check.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORK = ROOT / ".build" / "mutations"
TREE, BUILD = WORK / "tree", WORK / "build"
SEED, LIVES = 1, 20_000
SECONDS = 120  # of any one program: a mutant may hang
BUILD_SECONDS = 1200

MUTATIONS = {
    "timers fire early": (
        "src/timer_wheel.cpp",
        "std::max(rounded_up_quotient(nanoseconds_since_start(due), tick_), current_tick_)",
        "std::max(nanoseconds_since_start(due) / tick_, current_tick_)",
    ),
    "the peer's end is swallowed": (
        "src/connection_end.cpp",
        "  if (connection.has(Connection::peer_finished)) return;\n  connection.set(Connection::peer_finished);",
        "  if (!connection.has(Connection::peer_finished)) return;\n  connection.set(Connection::peer_finished);",
    ),
    "a deadline is judged before what has arrived is read": (
        "src/connection_deadlines.cpp",
        "    ready(core, connection, {static_cast<std::uint8_t>(Readiness::readable | Readiness::urgent | end)});\n",
        "    if (connection.stage_ == Connection::Stage::connecting)\n"
        "      ready(core, connection, {static_cast<std::uint8_t>(Readiness::readable | Readiness::urgent | end)});\n",
    ),
    "a life's record is told twice": (
        "src/connection_end.cpp",
        "  policy->handler->on_close(handler_of(connection), connection, record);\n",
        "  policy->handler->on_close(handler_of(connection), connection, record);\n"
        "  policy->handler->on_close(handler_of(connection), connection, record);\n",
    ),
    "an event of a life that is over is delivered": (
        "src/epoll_poller.hpp",
        "return {(source->generation_ & tag_mask) == tag ? source : nullptr, readiness_of(seen.events)};",
        "return {(source->generation_ & tag_mask) == tag || source->descriptor_ >= 0 ? source : nullptr, readiness_of(seen.events)};",
    ),
    "a loop that was late blames the peer": (
        "src/connection_deadlines.cpp",
        "    if (came_late && core.stalled_in_this_turn()) forgive(core, connection, late);\n",
        "    static_cast<void>(came_late);\n    static_cast<void>(late);\n",
    ),
    "a short read is believed although an end was signalled": (
        "src/connection_exchange.cpp",
        "  return (readiness.bits & ~Readiness::writable) == Readiness::readable &&\n"
        "         (connection.flags_ & (end_expected | Connection::tcp)) == Connection::tcp;",
        "  return (readiness.bits & Readiness::readable) != 0 && (connection.flags_ & (end_expected | Connection::tcp)) != 0;",
    ),
    "a post does not wake the reactor": (
        "src/mailbox.cpp",
        "  const bool first = shared_->tasks.empty();\n",
        "  const bool first = shared_->tasks.size() == 1;\n",
    ),
    "the send queue's bound is off by one": (
        "src/connection_exchange.cpp",
        "  const std::size_t bound = connection.policy_->backlog_bytes_max;",
        "  const std::size_t bound = std::size_t{connection.policy_->backlog_bytes_max} + 1;",
    ),
    "the reserve descriptor is not restored": (
        "src/listener.cpp",
        "    core.reserve_descriptor = sys::reserve_open();  // another thread may have taken it: tried again with the next pause\n",
        "    core.reserve_descriptor = -1;\n",
        "    if (core.reserve_descriptor < 0) core.reserve_descriptor = sys::reserve_open();\n",
        "",
    ),
}
PROGRAMS = ["vigil-simulate", "vigil-sim-tests", "vigil-tests"]  # the first needs the packages of the tools


def run(command, seconds=SECONDS, **options):
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            timeout=seconds, start_new_session=True, **options,
        )
        return done.returncode, done.stdout
    except subprocess.TimeoutExpired as expired:
        return None, (expired.stdout or b"").decode(errors="replace")


def prepare():
    shutil.rmtree(TREE, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name)
    if not (BUILD / "build.ninja").exists():
        setup = ["meson", "setup", BUILD, TREE, "-Dbuildtype=debugoptimized"]
        subprocess.run(setup, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "CXX": "g++"})
    build()


def build():
    status, log = run(["ninja", "--quiet", "-C", BUILD, *PROGRAMS], BUILD_SECONDS)
    if status != 0:
        sys.exit(f"does not build:\n{log[-3000:]}")


def noticed_by_simulation():
    status, log = run([BUILD / "vigil-simulate", "--seed", str(SEED), "--lives", str(LIVES)])
    if status == 0:
        return None
    if status is None:
        return f"hung for {SECONDS} s"
    replay = re.search(r"^.*--world.*$", log, re.MULTILINE)
    return replay[0].strip() if replay else (log.strip().splitlines() or [f"exit status {status}"])[-1]


def noticed_by_tests(program):
    status, log = run([BUILD / program, "--no-colors=true"])
    if status == 0:
        return None
    if status is None:
        return f"hung for {SECONDS} s"
    names = dict.fromkeys(re.findall(r"^TEST CASE:  (.*)$", log, re.MULTILINE))
    failed = [name.strip() for name in names]
    first = f"\"{failed[0]}\"" if failed else f"died, status {status}"
    return first + (f" and {len(failed) - 1} more" if len(failed) > 1 else "")


def main():
    wanted = sys.argv[1:] or list(MUTATIONS)
    for name in wanted:
        if name not in MUTATIONS:
            sys.exit(f"mutations: no such mutation: {name}; there are: {'; '.join(MUTATIONS)}")
    prepare()
    unnoticed = 0
    for name in wanted:
        file, *replacements = MUTATIONS[name]
        source = TREE / file
        original = mutant = source.read_text()
        for old, new in zip(replacements[::2], replacements[1::2]):
            if mutant.count(old) != 1:
                sys.exit(f"mutations: '{name}' fits {mutant.count(old)} times in {file}")
            mutant = mutant.replace(old, new)
        try:
            source.write_text(mutant)
            build()
            notices = {
                "simulation": noticed_by_simulation(),
                "vigil-sim-tests": noticed_by_tests("vigil-sim-tests"),
                "vigil-tests": noticed_by_tests("vigil-tests"),
            }
        finally:
            source.write_text(original)
        print(f"{name}{'' if any(notices.values()) else ': NOTICED BY NOBODY'}")
        for who, what in notices.items():
            print(f"  {who:<16} {what or '-'}", flush=True)
        unnoticed += not any(notices.values())
    return 1 if unnoticed else 0


sys.exit(main())
