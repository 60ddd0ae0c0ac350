#!/usr/bin/env python3
"""The driver of tools/coverage: which lines and branches of src/ and include/ the tests reach.

The library is compiled twice, for the kernel and for simulated system calls, and tests compile its headers once more: a line or
branch reached in any of them counts as reached. gcovr leaves out the branches that the compiler makes for exceptions, which the
library never throws, and those on lines without code. A process that is killed instead of ending leaves no counts.

It fails where src/ falls below the shares that are asked for, and where a line of src/ is reached by no test and
tests/uncovered_lines.txt gives no reason for that.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / ".build" / "coverage"
REPORT = BUILD / "report"
SIMULATED = ("src/sys/simulated/", "src/sim/")
SECONDS = 1800
REASONS = ROOT / "tests" / "uncovered_lines.txt"
LEAST_LINES, LEAST_BRANCHES = 95, 85  # of a hundred


def said(line):
    print(line, flush=True)


def run(command, log, environment=None):
    """Whether it ended well; what it printed is in the log."""
    with open(log, "w") as output:
        try:
            done = subprocess.run(
                [str(word) for word in command],
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0


def build(jobs):
    BUILD.mkdir(parents=True, exist_ok=True)
    log = BUILD / "build.log"
    said(f"Building in {BUILD.relative_to(ROOT)}")
    if not (BUILD / "build.ninja").exists():
        compiler = {"CXX": "g++", "CXXFLAGS": "", "LDFLAGS": ""}
        if not run(["meson", "setup", BUILD, "-Dbuildtype=debug", "-Db_coverage=true"], log, compiler):
            sys.exit(log.read_text())
    targets = ["vigil-tests", "vigil-sim-tests", "vigil-corpus-tests", "vigil-echo", "vigil-load", "vigil-probe", "vigil-simulate"]
    targets += ["world-agreement"]
    if not run(["ninja", "-C", BUILD, *jobs, *targets], log):
        sys.exit(log.read_text())
    for counts in BUILD.rglob("*.gcda"):  # of an earlier run
        counts.unlink()


def run_tests():
    """The names of those that failed. They are counted all the same."""
    failed = []
    tests = {name: [BUILD / name] for name in ("vigil-tests", "vigil-sim-tests", "vigil-corpus-tests")}
    tests["world-agreement"] = [BUILD / "world-agreement", 1, 200, 0]  # what the kernel answers to these is asked elsewhere
    tests["tools_test.py"] = [sys.executable, "tests/tools_test.py", BUILD]
    for name, command in tests.items():
        log = BUILD / f"{name}.log"
        said(f"Running {name}")
        if not run(command, log, {"VIGIL_TEST_SECONDS": "600", "VIGIL_SEED": "1"}):  # so that only the tree decides
            failed.append(name)
            said(f"  FAILED: its log is {log.relative_to(ROOT)}")
    return failed


def measure(jobs):
    """For each file its lines as gcovr counted them."""
    REPORT.mkdir(exist_ok=True)
    log = BUILD / "gcovr.log"
    counted = REPORT / "coverage.json"
    command = ["gcovr", "--root", ROOT, "--filter", "src/", "--filter", "include/", "--object-directory", BUILD]
    command += ["--exclude-throw-branches", "--exclude-unreachable-branches", *jobs]
    command += ["--json", counted, "--html-details", REPORT / "index.html", BUILD]
    said("Counting")
    if not run(command, log):
        sys.exit(log.read_text())
    return {file["file"]: file["lines"] for file in json.loads(counted.read_text())["files"]}


class Count:
    def __init__(self):
        self.lines = self.lines_reached = self.branches = self.branches_reached = 0

    def add(self, lines):
        for line in lines:
            if line.get("gcovr/noncode"):
                continue
            branches = line["branches"]
            self.lines += 1
            self.lines_reached += line["count"] > 0
            self.branches += len(branches)
            self.branches_reached += sum(branch["count"] > 0 for branch in branches)

    def __str__(self):
        return f"{share(self.lines_reached, self.lines)}  {share(self.branches_reached, self.branches)}"


def share(part, whole):
    percent = "     -" if whole == 0 else f"{100 * part / whole:5.1f}%"
    return f"{part:6}/{whole:<6} {percent}"


def missed_spans(lines):
    """The first and the last of lines that no test reaches and between which there is none that one does."""
    spans, open_span = [], None
    for line in sorted((line for line in lines if not line.get("gcovr/noncode")), key=lambda line: line["line_number"]):
        if line["count"] > 0:
            open_span = None
        elif open_span is None:
            open_span = [line["line_number"], line["line_number"]]
            spans.append(open_span)
        else:
            open_span[1] = line["line_number"]
    return spans


def known_reasons():
    """By file, each fragment of a line and why no test reaches it; and what of it fits no line any more."""
    reasons, stale = {}, []
    for line in REASONS.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        name, fragment, reason = line.split(" | ", 2)
        reasons.setdefault(name, []).append((fragment, reason))
        source = ROOT / name
        if not source.exists() or fragment not in source.read_text():
            stale.append(f"{name}: {fragment}")
    return reasons, stale


def tell_missed(files):
    """Each line that no test reaches, and why. Whether all have a reason."""
    reasons, stale = known_reasons()
    without = 0
    said("\nLines not reached:")
    for name, lines in sorted(files.items()):
        text = (ROOT / name).read_text().splitlines()
        for first, last in missed_spans(lines):
            found = [why for part, why in reasons.get(name, []) if any(part in line for line in text[first - 1 : last])]
            if not found and name.startswith("src/"):
                without += 1
            place = f"{name}:{first}" + (f"-{last}" if last != first else "")
            said(f"  {place}: {found[0] if found else 'NO REASON: ' + text[first - 1].strip()}")
    for entry in stale:
        said(f"  fits no line any more: {entry}")
    if without or stale:
        said(f"FAILED: {REASONS.relative_to(ROOT)} gives no reason for {without} of them, and {len(stale)} that fit no line")
    return not without and not stale


def tell(files):
    """Whether all is as it is asked for."""
    said(f"\n{'':46}{'lines reached':>20}  {'branches reached':>20}")
    for name, lines in sorted(files.items()):
        count = Count()
        count.add(lines)
        said(f"{name:46}{count}")
    groups = [
        ("src/", lambda name: name.startswith("src/")),
        ("src/ without the simulated part", lambda name: name.startswith("src/") and not name.startswith(SIMULATED)),
        ("the simulated part of src/", lambda name: name.startswith(SIMULATED)),
        ("include/", lambda name: name.startswith("include/")),
    ]
    said("")
    for title, belongs in groups:
        count = Count()
        for name, lines in files.items():
            if belongs(name):
                count.add(lines)
        said(f"{title:46}{count}")
    said("Branches made for exceptions, which the library never throws, and on lines without code are left out.")
    explained = tell_missed(files)
    said(f"\nBranches line by line: {(REPORT / 'index.html').relative_to(ROOT)}")
    source = Count()
    for name, lines in files.items():
        if name.startswith("src/"):
            source.add(lines)
    enough = (
        100 * source.lines_reached >= LEAST_LINES * source.lines
        and 100 * source.branches_reached >= LEAST_BRANCHES * source.branches
    )
    if not enough:
        said(f"FAILED: fewer than {LEAST_LINES} % of the lines of src/, or {LEAST_BRANCHES} % of its branches")
    return enough and explained


def main():
    parser = argparse.ArgumentParser(prog="coverage", description="Which lines and branches of the library its tests reach.")
    parser.add_argument("--jobs", "-j", type=int, metavar="N", help="at most N at a time (as many as there are processors)")
    jobs = parser.parse_args().jobs or os.cpu_count() or 1
    build([f"-j{jobs}"])
    failed = run_tests()
    good = tell(measure(["-j", jobs]))
    if failed:
        said(f"FAILED: {', '.join(failed)}: what they would have reached may be missing")
    return 0 if good and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
