#!/usr/bin/env python3
"""The rules a machine can check in the sources themselves: layer order, the seam, headers that compile alone, formatting.

Prints one line for every broken rule with its place, and ends with `N passed, N failed`; exits 1 if one failed. Needs g++ and
clang-format 14; headers are compiled by clang++ 19 too where it is installed. `tools/check` runs it.
"""

import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Includes only point down, or to the same layer without a circle. One concept is one stem, whichever directory it stands in.
LAYERS = [
    ("values", "result error time timeouts address slab block_pool reserved_array timer_wheel close_record bytes callback phi_accrual heartbeat_options verdict"),
    ("system calls", "sys vigil_sys kernel epoll_registrations"),
    ("pollers", "source source_slab poller epoll_poller kqueue_poller"),
    ("sockets", "socket socket_calls socket_wait socket_address socket_connect socket_exchange socket_listen socket_options unix_path send_queue"),
    ("reactor", "reactor reactor_core user_sources mailbox"),
    ("connections", "handler callback_names connection connection_life connection_side connection_attempt connection_exchange connection_reading connection_deadlines connection_messages connection_end rate_limit listener connector"),
    ("heartbeat", "heartbeat"),
    ("server", "server"),
    ("everything", "vigil"),
    ("the simulated world", "sim universe byte_queue segment tcp_constants tcp_end tcp_timers simulated_host scripted_peer network world_kernel world_sockets world_readiness world"),
]
LAYER_OF = {stem: level for level, (_, stems) in enumerate(LAYERS) for stem in stems.split()}

WARNINGS = "-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror".split()
HEADER_MODES = [[], ["-fno-exceptions", "-fno-rtti", "-DNDEBUG"]]  # as a user may compile them

PLATFORM_MACRO = re.compile(
    r"^\s*#\s*(?:el)?if(?:def|ndef)?\b.*(__linux__|__APPLE__|__FreeBSD__|__NetBSD__|__OpenBSD__|__DragonFly__|__unix__|_WIN32|__has_include)"
)
DEBUG_ONLY = re.compile(r"\bNDEBUG\b|<cassert>|(?<!static_)\bassert\s*\(")
SYSTEM_CALL = re.compile(
    r"(?<![\w:.>])::(accept4?|bind|clock_gettime|close|connect|dup[23]?|epoll_\w+|eventfd|fcntl|getpeername|getrandom|getsockname|getsockopt"
    r"|ioctl|kevent|kqueue|listen|lstat|pipe2?|poll|ppoll|read|readv|recv|recvfrom|recvmsg|select|send|sendmsg|sendto|setsockopt|shutdown"
    r"|signalfd|socket|socketpair|stat|timerfd_\w+|unlink|write|writev)\s*\("
)
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')


def sources(*directories):
    for directory in directories:
        for path in sorted((ROOT / directory).rglob("*")):
            if path.suffix in (".hpp", ".cpp"):
                yield path


def name_of(path):
    return str(path.relative_to(ROOT))


def code_lines(path):
    """Numbered lines without // comments, which may name what the code may not use."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        yield number, re.sub(r"//.*", "", line)


def library_sources():
    """The library without the seam's two implementations, which are what the rules protect the rest from."""
    return [path for path in sources("include", "src") if "sys" not in path.relative_to(ROOT).parts[1:-1]]


def check_layers():
    broken = []
    includes_of = {}
    for path in library_sources():
        name, stem = name_of(path), path.stem
        if stem not in LAYER_OF:
            broken.append(f"{name}: '{stem}' stands in no layer; give it one in tests/source_rules.py")
            continue
        for number, line in code_lines(path):
            match = INCLUDE.match(line)
            if not match:
                continue
            quoted, angled = match.groups()
            if quoted is None:
                if angled.startswith("vigil/"):
                    broken.append(f"{name}:{number}: vigil's own headers are included with quotes")
                continue
            if path.is_relative_to(ROOT / "include") and not quoted.startswith("vigil/"):
                broken.append(f"{name}:{number}: a public header includes \"{quoted}\", which is not installed")
            included = pathlib.PurePath(quoted).stem
            if included not in LAYER_OF:
                broken.append(f"{name}:{number}: \"{quoted}\" stands in no layer of the library")
            elif LAYER_OF[included] > LAYER_OF[stem]:
                upper, lower = LAYERS[LAYER_OF[included]][0], LAYERS[LAYER_OF[stem]][0]
                broken.append(f"{name}:{number}: includes \"{quoted}\": {lower} lie below {upper}")
            elif included != stem and path.suffix == ".hpp":
                includes_of.setdefault(stem, set()).add(included)
    return broken + [f"headers include each other in a circle: {circle}" for circle in circles(includes_of)]


def circles(includes_of):
    found, done = [], set()

    def visit(stem, trail):
        if stem in trail:
            found.append(" -> ".join(trail[trail.index(stem) :] + [stem]))
        elif stem not in done:
            for included in sorted(includes_of.get(stem, ())):
                visit(included, trail + [stem])
            done.add(stem)

    for stem in sorted(includes_of):
        visit(stem, [])
    return found


def check_seam():
    broken = []
    for path in library_sources():
        public = path.is_relative_to(ROOT / "include")
        for number, line in code_lines(path):
            place = f"{name_of(path)}:{number}"
            if PLATFORM_MACRO.search(line):
                broken.append(f"{place}: a platform is chosen outside src/sys")
            if SYSTEM_CALL.search(line):
                broken.append(f"{place}: a system call outside src/sys")
            if path.suffix == ".hpp" and public and DEBUG_ONLY.search(line):
                broken.append(f"{place}: a public header depends on NDEBUG; the assertion belongs into the .cpp")
    return broken


def check_format():
    tool = shutil.which("clang-format-14") or shutil.which("clang-format")
    if tool is None:
        return ["clang-format 14 is not installed"]
    paths = [name_of(path) for path in sources("include", "src", "tests", "bench", "tools")]
    if not paths:
        return []
    checked = subprocess.run([tool, "--dry-run", "-Werror", *paths], cwd=ROOT, capture_output=True, text=True, timeout=120)
    unformatted = sorted(set(re.findall(r"^(\S+?):\d+:\d+: error:", checked.stderr, re.MULTILINE)))
    if checked.returncode != 0 and not unformatted:
        return [checked.stderr.strip()]
    return [f"{name}: not as clang-format 14 writes it; run: clang-format-14 -i {name}" for name in unformatted]


def header_checks():
    """(what is checked, compiler command) for every header, alone, as each compiler sees it."""
    compilers = [compiler for compiler in ("g++", "clang++-19") if shutil.which(compiler)]
    seam = [path for path in sources("src/sys") if path.name != "vigil_sys.hpp"]  # which stands only inside sys.hpp
    for path in library_sources() + seam:
        if path.suffix != ".hpp":
            continue
        public = path.is_relative_to(ROOT / "include")
        directories = ["include"] if public else ["include", "src", "src/sys/simulated" if "simulated" in path.parts else "src/sys/linux"]
        for compiler in compilers:
            for mode in HEADER_MODES if public else HEADER_MODES[1:]:
                flags = ["-std=c++20", *WARNINGS, *mode, *(f"-I{directory}" for directory in directories)]
                # Included by an empty program, as a user does: `#pragma once in main file` is no finding.
                yield name_of(path), [compiler, *flags, "-fsyntax-only", "-include", name_of(path), "-x", "c++", "/dev/null"]


def check_header(command):
    compiled = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return [] if compiled.returncode == 0 else [f"does not compile alone: {' '.join(command)}\n{compiled.stderr.rstrip()}"]


def main():
    checks = [("layer order", check_layers), ("the seam", check_seam), ("formatting", check_format)]
    results = [(name, check()) for name, check in checks]
    per_header = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        commands = list(header_checks())
        for (name, _), broken in zip(commands, pool.map(lambda entry: check_header(entry[1]), commands)):
            per_header.setdefault(name, []).extend(broken)
    results += per_header.items()

    failed = 0
    for name, broken in results:
        failed += bool(broken)
        for line in broken:
            print(f"FAILED: {name}: {line}")
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
