#!/usr/bin/env python3
"""Whether the simulated world does what this machine's kernel does: the same scripts of system calls, drawn from seeds, on both.

    tests/kernel_agreement.py BUILD_DIRECTORY [FIRST_SEED [SEEDS]]

Shows the first difference of a seed, in a script left with only the steps it needs, and ends with `N passed, N failed`; exits 1 if
one failed. What is not compared, and why, stands in tests/kernel_agreement.cpp.
"""

import concurrent.futures
import pathlib
import re
import subprocess
import sys

SECONDS = 120
AT_ONCE, PART = 8, 25  # the kernel's scripts mostly wait
SHOWN = 5  # differences, and no more are looked for
# Once more, and slower, for interrupts wait where a machine is busy; but so that a script takes less than the second after which
# an attempt is made again.
PATIENCE_MS = (0, 1, 3)


def scripts(program, first, count, patience=0, left_out=()):
    """What each seed's script printed, by lines."""
    command = [program, first, count, patience, *left_out]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=SECONDS)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stdout[-2000:]}{done.stderr}")
    return [part.splitlines() for part in re.split(r"^seed \d+\n", done.stdout, flags=re.MULTILINE)[1:]]


def first_difference(kernel, world):
    """The number of the first line that is not the same; None: there is none."""
    if kernel == world:
        return None
    return next((at for at, lines in enumerate(zip(kernel, world)) if lines[0] != lines[1]), min(len(kernel), len(world)))


def compare(programs, seed, left_out, patience):
    kernel, world = (scripts(program, seed, 1, patience, left_out)[0] for program in programs)
    at = first_difference(kernel, world)
    return (kernel, world, at) if at is not None else None


def step_of(lines, at):
    """The number of the step whose line that is; -1: it stands before the first."""
    return next((int(line[:2]) for line in reversed(lines[: at + 1]) if re.match(r"[ \d]\d  ", line)), -1)


def minimised(programs, seed):
    """A difference that stays when there is time, in as few steps as leave one; None: it does not stay."""
    for patience in PATIENCE_MS:
        found = compare(programs, seed, (), patience)
        if found is None:
            return None
    last = step_of(*found[0::2])
    left_out = list(range(last + 1, 100))
    for step in range(last - 1, -1, -1):
        if smaller := compare(programs, seed, [*left_out, step], PATIENCE_MS[1]):
            found = smaller
            left_out.append(step)
    return found


def differing_seeds(programs, first, count):
    both = zip(*(scripts(program, first, count) for program in programs), strict=True)
    return [first + offset for offset, (kernel, world) in enumerate(both) if first_difference(kernel, world) is not None]


def show(seed, kernel, world, at):
    print(f"seed {seed}:")
    for line in kernel[:at]:
        print("    ", line)
    for name, lines in (("kernel", kernel), ("world", world)):
        print(f"  {name}: {lines[at] if at < len(lines) else 'the script is over'}")


def main():
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 64
    programs = [pathlib.Path(sys.argv[1]).resolve() / name for name in ("kernel-agreement", "world-agreement")]
    first, count = (int(word) for word in (sys.argv[2:4] + ["1", "500"][len(sys.argv[2:4]) :]))
    parts = [(first + at, min(PART, count - at)) for at in range(0, count, PART)]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        differing = [seed for seeds in pool.map(lambda part: differing_seeds(programs, *part), parts) for seed in seeds]
    failed = 0
    for seed in differing:
        if failed < SHOWN and (found := minimised(programs, seed)):
            failed += 1
            show(seed, *found)
    print(f"{count - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
