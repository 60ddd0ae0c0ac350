#!/usr/bin/env python3
"""The driver of tools/check: builds every configuration, runs its tests and the other checks, and sums up.

One line for each step, with the seconds it took; the log of a step that failed is shown, every log is kept under .build/logs/.
The last line is `N passed, N failed, N skipped`. A test that can't run here prints `SKIPPED: name: reason`; with CI=true in the
environment that counts as failed.
"""

import concurrent.futures
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / ".build"
LOGS = BUILD / "logs"
INSTALLED = BUILD / "installed"

SKIPS_ARE_FAILURES = os.environ.get("CI") == "true"
BUILD_SECONDS = 1200
TEST_SECONDS = 300
LOG_LINES_SHOWN = 250

GCC, CLANG = "g++", "clang++-19"
PLAIN, ADDRESS, THREAD = "none", "address,undefined", "thread"
SANITIZER_NAMES = {PLAIN: "", ADDRESS: " ASan+UBSan", THREAD: " TSan"}

TEST_PROGRAMS = ("vigil-tests", "vigil-sim-tests", "vigil-corpus-tests")

SANITIZER_ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=1:strict_string_checks=1:check_initialization_order=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}


class Failed(Exception):
    """A step failed and has been told."""


class Tally:
    def __init__(self):
        self.passed = self.failed = 0
        self.skips = []

    def add(self, passed=0, failed=0, skips=()):
        self.passed += passed
        self.failed += failed
        self.skips += skips


tally = Tally()


running = set()  # processes, also those of a build made ahead


def run(command, log, seconds, environment=None):
    """Runs to the end or to the time limit, with everything it started; returns the exit status, or None if it took too long."""
    with open(log, "w") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        running.add(process)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            stop_session(process)
            running.discard(process)


def stop_session(process):
    """Leaves nothing behind: ends what still runs in the session of a process we started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue


class Step:
    """`with Step(name) as step:` prints the name at once, the outcome and the seconds at the end."""

    def __init__(self, name):
        self.name = name
        self.outcome = "ok"
        self.log = LOGS / (re.sub(r"[^a-z0-9+]+", "-", name.lower()).strip("-") + ".log")
        self.failure = None

    def __enter__(self):
        self.started = time.monotonic()
        print(f"  {self.name:<54}", end="", flush=True)
        return self

    def run(self, command, seconds, environment=None):
        status = run(command, self.log, seconds, environment)
        if status is None:
            self.failure = f"took longer than {seconds} s"
        elif status != 0:
            self.failure = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return self.log.read_text(errors="replace")

    def __exit__(self, kind, problem, trace):
        if kind is not None and not issubclass(kind, (OSError, ValueError)):
            return False
        if kind is not None:
            self.failure = str(problem)
        seconds = time.monotonic() - self.started
        print(f"{'FAILED' if self.failure else self.outcome:<24}{seconds:6.0f} s", flush=True)
        if not self.failure:
            return True
        print(f"    {self.failure}; the log is {self.log.relative_to(ROOT)}:")
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        if len(lines) > LOG_LINES_SHOWN:
            print("    | …")
        for line in lines[-LOG_LINES_SHOWN:]:
            print("    |", line)
        sys.stdout.flush()
        raise Failed


class Configuration:
    def __init__(self, compiler, build_type, sanitizer, assertions=False, more_options=()):
        self.compiler = compiler
        self.build_type = build_type
        self.sanitizer = sanitizer
        self.building = None
        self.name = f"{'g++' if compiler == GCC else 'clang'} {build_type}{SANITIZER_NAMES[sanitizer]}"
        self.directory = BUILD / re.sub(r"[^a-z0-9+]+", "-", self.name.lower())
        self.options = [
            f"-Dbuildtype={build_type}",
            f"-Db_sanitize={sanitizer}",
            f"-Db_ndebug={'false' if assertions else 'if-release'}",
            "-Db_lundef=false",  # clang's sanitizers are resolved in the program, not in a library
            "-Dwerror=true",
            f"-Dprefix={INSTALLED}",
            "-Dlibdir=lib",
            *more_options,
        ]

    def build_ahead(self, builder, targets=()):
        """While tests of another configuration run, which mostly wait: build() then tells how it went."""
        self.building = builder.submit(self.make, Step(f"{self.name}: build"), targets)

    def build(self, targets=()):
        with Step(f"{self.name}: build") as step:
            step.failure = self.building.result() if self.building else self.make(step, targets)

    def make(self, step, targets):
        self.set_up(step)
        if not step.failure:
            step.run(["nice", "-n", "5", "ninja", "--quiet", "-C", self.directory, *targets], BUILD_SECONDS)
        return step.failure

    def set_up(self, step):
        """Configures a new directory, or one made with other options from scratch."""
        stamp = self.directory / "configured-with"
        wanted = "\n".join([self.compiler, *self.options])
        if stamp.exists() and stamp.read_text() == wanted:
            return
        shutil.rmtree(self.directory, ignore_errors=True)
        compiler = {"CXX": self.compiler, "CXXFLAGS": "", "LDFLAGS": ""}
        step.run(["meson", "setup", self.directory, ROOT, *self.options], BUILD_SECONDS, compiler)
        if not step.failure:
            stamp.write_text(wanted)

    def test(self, arguments=(), under=(), label="", seconds=TEST_SECONDS, environment=None, programs=TEST_PROGRAMS):
        for program in programs:
            path = self.directory / program
            if not path.exists():
                continue
            command = [*under, path, "--no-colors=true", *arguments]
            if self.sanitizer == THREAD and can_fix_addresses():
                command = ["setarch", "-R", *command]  # this sanitizer's memory layout and random addresses do not go together
            attempt(run_tests, f"{self.name}{label}: {program}", command, seconds, {**SANITIZER_ENVIRONMENT, **(environment or {})})

    def memcheck(self):
        """Reads of what was never written, which no sanitizer here sees.

        Under valgrind an accept above the descriptor limit takes the connection from the kernel, closes it and then says EMFILE: the
        tests that run out of descriptors mean the kernel's own answer and are left out. So are those of threads, of which it runs
        one at a time. The tests' own operator new, which runs out of memory on demand, stays in force (somalloc).
        """
        valgrind = ["valgrind", "--quiet", "--error-exitcode=9", "--leak-check=full", "--soname-synonyms=somalloc=nouserintercepts"]
        leave_out = ["--test-case-exclude=*without a descriptor left*,*no descriptor was left*", "--test-suite-exclude=threads"]
        self.test(leave_out, valgrind, " valgrind", 3600, {"VIGIL_TEST_SECONDS": "900"})


def attempt(action, *arguments):
    """Goes on after a failed step. Returns whether it succeeded; a step that counts nothing itself counts as one failure."""
    failed_before = tally.failed
    try:
        action(*arguments)
        return True
    except Failed:
        if tally.failed == failed_before:
            tally.add(failed=1)
        return False


def can_fix_addresses():
    return shutil.which("setarch") and subprocess.run(["setarch", "-R", "true"], capture_output=True).returncode == 0


def run_tests(name, command, seconds, environment):
    with Step(name) as step:
        log = step.run(command, seconds, environment)
        totals = re.findall(r"^\[doctest\] test cases:\s*\d+ \|\s*(\d+) passed \|\s*(\d+) failed", log, re.MULTILINE)
        skips = re.findall(r"^SKIPPED: (.*)$", log, re.MULTILINE)
        passed, failed = (int(number) for number in totals[-1]) if totals else (0, 0)
        if not totals and not step.failure:
            step.failure = "printed no totals"
        if step.failure and failed == 0:
            failed = 1  # it died, hung, leaked, or a sanitizer spoke
        tally.add(max(passed - len(skips), 0), failed, skips)
        step.outcome = f"{passed - len(skips)} passed" + (f", {len(skips)} skipped" if skips else "")
        if totals and passed + failed == 0:
            step.outcome = "has none"


def check_sources():
    with Step("source rules") as step:
        log = step.run([sys.executable, "tests/source_rules.py"], 300)
        totals = re.search(r"^(\d+) passed, (\d+) failed$", log, re.MULTILINE)
        if totals:
            tally.add(int(totals[1]), int(totals[2]))
            step.outcome = f"{totals[1]} passed"


def check_compile_failures(compilers):
    """What a user is to get wrong at compile time and not later."""
    with Step("what must not compile") as step:
        log = step.run([sys.executable, "tests/compile_failures.py", *compilers], 300)
        totals = re.search(r"^(\d+) passed, (\d+) failed$", log, re.MULTILINE)
        if totals:
            tally.add(int(totals[1]), int(totals[2]))
            step.outcome = f"{totals[1]} passed"


def check_agreement(configuration):
    """What is tested in a simulated world is tested against something true."""
    if not all((configuration.directory / name).exists() for name in ("kernel-agreement", "world-agreement")):
        return
    with Step("the simulated world agrees with this kernel") as step:
        log = step.run([sys.executable, "tests/kernel_agreement.py", configuration.directory], 300)
        totals = re.search(r"^(\d+) passed, (\d+) failed$", log, re.MULTILINE)
        if totals:
            tally.add(failed=int(totals[2]))
            step.outcome = f"{totals[1]} scripts"
    tally.add(passed=1)


def check_libraries_exclude_each_other(configuration):
    """Who links both libraries gets no program, or one that is simulated throughout: never a mixture."""
    archives = [configuration.directory / name for name in ("libvigil.a", "libvigil_sim.a")]
    if not all(archive.exists() for archive in archives):
        return
    compiled, linked = LOGS / "both_libraries.o", LOGS / "both_libraries"
    with Step("a program for both libraries: compile") as step:
        step.run([configuration.compiler, "-std=c++20", "-Iinclude", "-c", "tests/both_libraries.cpp", "-o", compiled], 120)
    link = [configuration.compiler, compiled, "-pthread", f"-L{configuration.directory}", "-o", linked]
    whole = ["-Wl,--whole-archive", *archives, "-Wl,--no-whole-archive"]
    attempt(check_no_link, "whole archives of both: no link", [*link, *whole])
    attempt(check_no_link, "-lvigil -lvigil_sim: no link", [*link, "-lvigil", "-lvigil_sim"])
    attempt(check_no_link, "both Meson dependencies: no link", ["ninja", "-C", configuration.directory, "both-libraries"])
    attempt(check_all_simulated, "-lvigil_sim -lvigil: all simulated", [*link, "-lvigil_sim", "-lvigil"], linked)


def check_no_link(name, command):
    with Step(name) as step:
        log = step.run(command, 120)
        clash = "multiple definition of `vigil::sys::implementation'" in log
        step.failure = None if step.failure and clash else "they link, or fail for another reason than sys::implementation"
    tally.add(passed=1)


def check_all_simulated(name, command, program):
    """The first library leaves nothing open that the second one would fill: traced twice, the linker names each object it takes."""
    with Step(name) as step:
        log = step.run([*command, "-Wl,--trace", "-Wl,--trace"], 120)
        if not step.failure and "libvigil.a)" in log:
            step.failure = "something of libvigil.a is in it"
        if not step.failure:
            step.run([program], 30)
    tally.add(passed=1)


def check_main_job(configuration):
    """What quickstart shows a newcomer, shorter."""
    tools = [configuration.directory / f"vigil-{tool}" for tool in ("echo", "load", "probe")]
    if not all(tool.exists() for tool in tools):
        return
    with Step("main job") as step:
        step.run([sys.executable, "tools/main_job.py", configuration.directory, "--duration", "2"], 90)
    tally.add(passed=1)


def check_tools(configuration):
    """What the tools print, their exit status, how they end."""
    if not (configuration.directory / "vigil-echo").exists():
        return
    with Step(f"{configuration.name}: tools") as step:
        command = [sys.executable, "tests/tools_test.py", configuration.directory]
        if configuration.sanitizer == THREAD and can_fix_addresses():
            command = ["setarch", "-R", *command]
        log = step.run(command, 300, SANITIZER_ENVIRONMENT)
        totals = re.search(r"^(\d+) passed, (\d+) failed$", log, re.MULTILINE)
        skips = re.findall(r"^SKIPPED: (.*)$", log, re.MULTILINE)
        passed, failed = (int(number) for number in totals.groups()) if totals else (0, 0)
        passed -= len(skips)  # which are no failures either
        tally.add(passed, max(failed, 1) if step.failure else failed, skips)
        step.outcome = f"{passed} passed" + (f", {len(skips)} skipped" if skips else "")


def check_simulation(configuration, lives):
    """Lives in simulated worlds, with every fault, judged by the oracle."""
    program = configuration.directory / "vigil-simulate"
    if not program.exists():
        return
    with Step(f"{configuration.name}: {lives:,} simulated lives") as step:
        log = step.run([program, "--lives", lives], TEST_SECONDS, SANITIZER_ENVIRONMENT)
        totals = re.search(r"^([\d,]+) violations in ([\d,]+) lives", log, re.MULTILINE)
        step.outcome = f"{totals[1]} violations" if totals else "printed no totals"
    tally.add(passed=1)


def check_faults(configuration):
    """Every fault in the networks of this kernel, once, and what vigil said of each."""
    programs = [configuration.directory / f"vigil-{tool}" for tool in ("echo", "probe")]
    if not all(program.exists() for program in programs):
        return
    with Step("faults of networks, hosts and processes") as step:
        status = run([sys.executable, "tools/fault_table.py", configuration.directory], step.log, 240)
        log = step.log.read_text(errors="replace")
        if status == 77:
            step.outcome = "skipped: needs root"
            tally.add(skips=["faults of networks, hosts and processes: needs root"])
            return
        totals = re.search(r"^(\d+) passed, (\d+) failed$", log, re.MULTILINE)
        passed, failed = (int(number) for number in totals.groups()) if totals else (0, 0)
        if status != 0:
            step.failure = "took too long" if status is None else f"exit status {status}"
            failed = max(failed, 1)
        tally.add(passed, failed)
        step.outcome = f"{passed} passed"


def check_readme_programs(configuration):
    """The README's programs, pasted into files and linked as a stranger would; the first is spoken to, and the simulated world run."""
    text = (ROOT / "README.md").read_text()
    programs = re.findall(r"^```cpp\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    with Step("README's programs, from an installed vigil") as step:
        if not programs:
            raise ValueError("README.md has no C++ program")
        shutil.rmtree(INSTALLED, ignore_errors=True)
        step.run(["meson", "install", "-C", configuration.directory, "--no-rebuild"], 120)
        binaries = []
        for number, program in enumerate(programs, 1):
            library = "vigil_sim" if "<vigil/sim.hpp>" in program else "vigil"
            binaries += [] if step.failure else [build_installed(configuration, step, f"readme-{number}", program, library)]
        if not step.failure:
            step.outcome = f"{len(binaries)} programs"
            speak_to(binaries[0], step)
    tally.add(passed=1)

    with Step("README's simulated world prints what README shows") as step:
        simulated = [binary for binary, program in zip(binaries, programs) if "<vigil/sim.hpp>" in program]
        if len(simulated) != 1:
            raise ValueError(f"README.md has {len(simulated)} programs that simulate a world")
        log = step.run([simulated[0]], 30)
        if not step.failure and (not log or log not in text):
            step.failure = "it prints something else than README.md shows"
    tally.add(passed=1)


def build_installed(configuration, step, name, program, library):
    source, binary = LOGS / f"{name}.cpp", LOGS / name
    source.write_text(program)
    build = f"{configuration.compiler} -std=c++20 '{source}' $(pkg-config --cflags --libs {library}) -o '{binary}'"
    step.run(["sh", "-euc", build], 300, {"PKG_CONFIG_PATH": str(INSTALLED / "lib/pkgconfig")})
    return binary


def speak_to(binary, step):
    """Runs the echo program and expects a line back, unless something else already listens where it wants to."""
    address = ("127.0.0.1", 7000)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(address)
        except OSError:
            step.outcome = "ok (port 7000 in use: not run)"
            return
    with open(step.log, "w") as output:
        server = subprocess.Popen([binary], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
        try:
            client = connect_when_ready(address, server)
            with client:
                client.settimeout(30)
                client.sendall(b"a line\n")
                answer = client.makefile("rb").readline()
            if answer != b"a line\n":
                raise ValueError(f"sent a line, got {answer!r}")
        finally:
            stop_session(server)


def connect_when_ready(address, server):
    until = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection(address, 30)
        except ConnectionRefusedError:
            if server.poll() is not None:
                raise ValueError(f"the program ended with status {server.returncode}") from None
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def check():
    builder = concurrent.futures.ThreadPoolExecutor(1)
    try:
        check_ahead(builder)
    finally:
        builder.shutdown(wait=False, cancel_futures=True)


def check_ahead(builder):
    gcc = Configuration(GCC, "release", PLAIN, assertions=True)
    quickly = ["-Doptimization=1"]  # most of their time is their compiler's
    address = Configuration(CLANG, "debugoptimized", ADDRESS, more_options=quickly)
    thread = Configuration(CLANG, "debugoptimized", THREAD, more_options=quickly)
    gcc.build_ahead(builder)
    address.build_ahead(builder, [*TEST_PROGRAMS, "vigil-echo", "vigil-load", "vigil-probe", "vigil-simulate"])  # no benches
    thread.build_ahead(builder, ["vigil-thread-tests"])

    attempt(check_sources)
    attempt(check_compile_failures, [GCC])

    if attempt(gcc.build):
        gcc.test()
        attempt(check_tools, gcc)
        attempt(check_simulation, gcc, 20_000)
        attempt(check_faults, gcc)
        attempt(check_main_job, gcc)
        attempt(check_readme_programs, gcc)
        attempt(check_libraries_exclude_each_other, gcc)
        attempt(check_agreement, gcc)

    if attempt(address.build):
        address.test()
        attempt(check_tools, address)
        attempt(check_simulation, address, 20_000)  # fewer tell too few of the rarest verdict

    if attempt(thread.build):
        thread.test(["--test-suite=threads"], label=" (threads)", programs=["vigil-thread-tests"])


def check_full():
    builder = concurrent.futures.ThreadPoolExecutor(1)
    try:
        check_every_configuration(builder)
    finally:
        builder.shutdown(wait=False, cancel_futures=True)


def check_every_configuration(builder):
    """Each is built while the one before is tested, which mostly waits."""
    configurations = [
        Configuration(compiler, build_type, sanitizer)
        for compiler in (GCC, CLANG)
        for build_type in ("debug", "release")
        for sanitizer in (PLAIN, ADDRESS, THREAD)
    ]
    configurations[0].build_ahead(builder)
    attempt(check_sources)
    attempt(check_compile_failures, [GCC, CLANG])
    first_is_built = False
    for configuration, following in zip(configurations, [*configurations[1:], None]):
        built = attempt(configuration.build)
        first_is_built |= built and configuration is configurations[0]
        if following:
            following.build_ahead(builder)
        if not built:
            continue
        configuration.test(seconds=3 * TEST_SECONDS)
        attempt(check_tools, configuration)
        attempt(check_simulation, configuration, 20_000)
        if configuration.sanitizer == PLAIN and configuration.build_type == "release":
            attempt(check_faults, configuration)
            attempt(check_main_job, configuration)
            attempt(check_readme_programs, configuration)
            attempt(check_libraries_exclude_each_other, configuration)
            attempt(check_agreement, configuration)
    if first_is_built:
        configurations[0].memcheck()


def main():
    for option in sys.argv[1:]:
        if option != "--full":
            print(f"checks.py: unknown option '{option}' (there is only --full)", file=sys.stderr)
            return 64
    full = "--full" in sys.argv[1:]
    LOGS.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    try:
        check_full() if full else check()
    except KeyboardInterrupt:
        print("\ninterrupted")
        return 130
    finally:
        for process in list(running):
            stop_session(process)

    for skip in sorted(set(tally.skips)):
        print(f"  skipped: {skip}")
    skipped = len(tally.skips)
    if skipped and SKIPS_ARE_FAILURES:
        print(f"  in CI nothing may be skipped: the {skipped} count as failed")
        tally.failed += skipped
        skipped = 0
    print(f"  {(time.monotonic() - started) / 60:.1f} minutes")
    print(f"{tally.passed} passed, {tally.failed} failed, {skipped} skipped")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
