#!/usr/bin/env python3
"""vigil-echo, vigil-probe and vigil-load as a stranger meets them: what they print, their exit status, how they end.

    tools_test.py BUILD-DIRECTORY

One line for each test that failed, with the reason; the last line is `N passed, N failed`. Nothing sleeps for a fixed time: each
test waits for a line, an end or a byte, for PATIENCE at most.
"""

import contextlib
import itertools
import json
import os
import pathlib
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATIENCE = 60.0
USAGE = 64

programs = {}
tests = []


def test(function):
    tests.append(function)
    return function


def equal(got, wanted, what=""):
    if got != wanted:
        raise AssertionError(f"{what or 'value'}: {got!r}, wanted {wanted!r}")


def true(condition, what):
    if not condition:
        raise AssertionError(what)


class Tool:
    """A running tool whose lines can be waited for."""

    def __init__(self, name, *arguments, **how):
        command = [programs[name], *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
        )
        self.lines = []
        self.watchdog = threading.Timer(PATIENCE, self.process.kill)
        self.watchdog.start()

    def line(self):
        line = self.process.stdout.readline()
        true(line.endswith("\n"), f"a whole line was awaited, got {line!r}")
        self.lines.append(line.rstrip("\n"))
        return self.lines[-1]

    def event(self, kind):
        """The next JSON line of that kind; those in between are kept in `lines`."""
        while True:
            event = json.loads(self.line())
            true(isinstance(event["time_ns"], int), "every line has time_ns")
            if event["event"] == kind:
                return event

    def end(self, with_signal=None):
        """Its exit status, and everything it still printed."""
        if with_signal is not None:
            self.process.send_signal(with_signal)
        out, self.error = self.process.communicate(timeout=PATIENCE)
        self.lines += out.splitlines()
        return self.process.returncode

    def events(self, kind):
        return [event for event in map(json.loads, self.lines) if event["event"] == kind]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.watchdog.cancel()
        if self.process.poll() is None:
            self.process.kill()
        with contextlib.suppress(ValueError):  # its output was already read to the end
            self.process.communicate()


class Echo(Tool):
    def __init__(self, *arguments, **how):
        super().__init__("echo", "--listen", "127.0.0.1:0", "--json", *arguments, **how)
        listening = self.event("listening")
        equal(listening["reactor"], 0, "the reactor of a server's line")
        self.address = listening["address"]

    def client(self):
        host, port = self.address.rsplit(":", 1)
        return socket.create_connection((host, int(port)), PATIENCE)


@contextlib.contextmanager
def standing_still(tool):
    """What happens meanwhile the tool meets all at once, however slow this machine is."""
    tool.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, tool.process.pid, os.WSTOPPED)  # each of its threads has stopped
    yield
    tool.process.send_signal(signal.SIGCONT)


def run(name, *arguments):
    """Exit status, stdout, stderr."""
    done = subprocess.run(
        [programs[name], *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE
    )
    return done.returncode, done.stdout, done.stderr


def read_to_the_end(client):
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while some := client.recv(65536):
            received += some
    return received


@contextlib.contextmanager
def closed_port():
    with socket.socket() as bound:  # bound and not listening: nobody else takes it meanwhile
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@contextlib.contextmanager
def python_server(answer):
    """An echo server whose echo is `answer(bytes, bytes before)`."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection):
        before = 0
        with connection, contextlib.suppress(OSError):
            while some := connection.recv(65536):
                connection.sendall(answer(some, before))
                before += len(some)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@test
def a_wrong_option_value_or_address_is_one_clear_line_and_status_64():
    wrong = [
        ("echo", "--no-such-option"),
        ("echo", "surplus"),
        ("echo", "--receive-timeout", "abc"),
        ("echo", "--receive-timeout", "0s"),
        ("echo", "--receive-timeout", "-1s"),
        ("echo", "--receive-timeout", "30"),
        ("echo", "--receive-timeout", "11000000h"),
        ("echo", "--drain-timeout", "never"),
        ("echo", "--receive-timeout"),
        ("echo", "--backlog-max", "0"),
        ("echo", "--backlog-max", "64k"),
        ("echo", "--backlog-max", "99999999999999999999999"),
        ("echo", "--listen", ""),
        ("echo", "--listen", "127.0.0.1"),
        ("echo", "--listen", "127.0.0.1:65536"),
        ("echo", "--listen", "300.1.1.1:80"),
        ("echo", "--listen", "[::1:80"),
        ("echo", "--listen", "localhost"),
        ("echo", "--listen", "localhost:http"),
        ("echo", "--listen", "a\nb:1"),
        ("echo", "--flood", "--reply-per-message", "10"),
        ("echo", "--flood", "--reply-delay", "1s"),
        ("echo", "--reply-per-message", "1001", "--backlog-max", "1000"),
        ("echo", "--reply-delay", "-1s"),
        ("echo", "--stats", "0s"),
        ("echo", "--accept-timeout", "0s"),
        ("echo", "--message-timeout", "0s"),
        ("echo", "--min-receive-rate", "0"),
        ("echo", "--min-send-rate", "fast"),
        ("echo", "--min-send-rate", "1", "--rate-window", "0s"),
        ("echo", "--min-send-rate", "1", "--rate-grace", "never"),
        ("echo", "--max-connections", "0"),
        ("echo", "--max-connections", "1", "--reactors", "2"),
        ("echo", "--reactors", "0"),
        ("echo", "--reactors", "1025"),
        ("echo", "--reactors", "2", "--listen", "unix:@vigil-tools-test"),
        ("echo", "--rate-grace", "1s"),
        ("echo", "--rate-window", "1s"),
        ("echo", "--when-backlogged", "wait"),
        ("echo", "--when-backlogged", "pause", "--backlog-max", "4095"),
        ("echo", "--when-backlogged", "pause", "--backlog-max", "5095", "--reply-per-message", "1000"),
        ("probe",),
        ("probe", "127.0.0.1:0"),
        ("probe", "127.0.0.1:1", "--source", "[::1]:0"),
        ("probe", "127.0.0.1:1", "--read-rate", "0"),
        ("probe", "127.0.0.1:1", "--flood", "--finish"),
        ("probe", "127.0.0.1:1", "--rate-grace", "1s"),
        ("probe", "127.0.0.1:1", "--backlog-max", "1000"),
        ("echo", "--heartbeat-timeout", "0s"),
        ("echo", "--heartbeat-timeout", "never"),
        ("probe", "127.0.0.1:1", "--heartbeat-timeout", "20s", "--heartbeat-interval", "0s"),
        ("probe", "127.0.0.1:1", "--heartbeat-timeout", "20s", "--ping", "a\\q"),
        ("probe", "127.0.0.1:1", "--heartbeat-timeout", "20s", "--ping", "a\\"),
        ("probe", "127.0.0.1:1", "--heartbeat-timeout", "20s", "--ping", "\\x1"),
        ("load",),
        ("load", "127.0.0.1:1", "--connections", "0"),
        ("load", "127.0.0.1:1", "--size", "0"),
        ("load", "127.0.0.1:1", "--pipeline", "65536", "--size", "1000000"),
        ("load", "127.0.0.1:1", "--rate", "1.5"),
        ("load", "127.0.0.1:1", "--duration", "0s"),
    ]
    for command in wrong:
        status, out, error = run(*command)
        equal(status, USAGE, f"{command}: status")
        equal(out, "", f"{command}: stdout")
        true(error.endswith("\n") and error.count("\n") == 1, f"{command}: one line on stderr, got {error!r}")
        true(error.startswith(f"vigil-{command[0]}: "), f"{command}: {error!r} does not begin with the tool's name")


@test
def what_is_wrong_with_the_number_of_values_is_said_in_plain_words():
    for command, problem in (
        (["probe"], "the address is missing: HOST:PORT"),
        (["load", "--size", 10], "the address is missing: HOST:PORT"),
        (["echo", "--stats"], "--stats: its value is missing"),
        (["echo", "--json=yes"], "--json takes no value"),
        (["echo", "--stats", "1s", "--stats", "2s"], "--stats is given more than once"),
        (["echo", "--listen", ": At Most 1 required"], "--listen: ': At Most 1 required': not an IPv4 address"),
        (["echo", "--rate-window", "1s"], "--rate-window is about a rate: give --min-receive-rate or --min-send-rate too"),
    ):
        tool = f"vigil-{command[0]}"
        equal(run(*command), (USAGE, "", f"{tool}: {problem} (see {tool} --help)\n"), f"{command}")


@test
def heartbeat_options_that_contradict_each_other_are_refused_with_the_reason_before_anything_is_connected():
    for options, problem in (
        (["--heartbeat-interval", "1s"], "--heartbeat-interval: a heartbeat needs a budget: give --heartbeat-timeout too"),
        (["--ping", "x"], "--ping: a heartbeat needs a budget: give --heartbeat-timeout too"),
        (["--keepalive-only"], "--keepalive-only: a heartbeat needs a budget: give --heartbeat-timeout too"),
        (["--heartbeat-timeout", "20s", "--ping", ""], "--heartbeat-timeout, --ping: an empty ping is no probe"),
        (
            ["--heartbeat-timeout", "1s"],
            "--heartbeat-timeout: heartbeat budget below interval + 1.5 s, which a verdict needs",
        ),
        (
            ["--heartbeat-timeout", "4s", "--heartbeat-interval", "2600ms"],
            "--heartbeat-timeout, --heartbeat-interval: heartbeat budget below interval + 1.5 s, which a verdict needs",
        ),
        (
            ["--heartbeat-timeout", "20s", "--heartbeat-interval", "21s"],
            "--heartbeat-timeout, --heartbeat-interval: heartbeat budget shorter than the interval",
        ),
        (
            ["--heartbeat-timeout", "20s", "--heartbeat-interval", "7s"],
            "--heartbeat-timeout, --heartbeat-interval: heartbeat budget below three intervals",
        ),
        (
            ["--heartbeat-timeout", "20s", "--ping", "x", "--keepalive-only"],
            "--heartbeat-timeout, --ping, --keepalive-only: keepalive_only sends no pings: it takes no interval, misses, ping or phi",
        ),
        (["--phi", "8"], "--phi: a heartbeat needs a budget: give --heartbeat-timeout too"),
        (["--heartbeat-timeout", "20s", "--phi", "0.5"], "--phi: '0.5' is not a number from 1 to 100"),
        (["--heartbeat-timeout", "20s", "--phi", "8x"], "--phi: '8x' is not a number from 1 to 100"),
        (["--heartbeat-timeout", "20s", "--phi", "nan"], "--phi: 'nan' is not a number from 1 to 100"),
        (
            ["--heartbeat-timeout", "2500ms", "--phi", "8"],
            "--heartbeat-timeout, --phi: heartbeat budget below two intervals and 1.5 s, before which phi has nothing to say",
        ),
    ):
        with socket.create_server(("127.0.0.1", 0)) as untouched:
            where = "127.0.0.1:{}".format(untouched.getsockname()[1])
            untouched.setblocking(False)
            for tool, target in (("probe", [where]), ("echo", ["--listen", where])):
                told = f"vigil-{tool}: {problem} (see vigil-{tool} --help)\n"
                equal(run(tool, *target, *options), (USAGE, "", told), f"{tool} {options}")
            try:
                untouched.accept()
                raise AssertionError(f"{options}: somebody has connected")
            except BlockingIOError:
                pass
    too_long = ["--heartbeat-timeout", "20s", "--ping", "long", "--backlog-max", "3"]
    told = "vigil-echo: --ping: it would pass --backlog-max (see vigil-echo --help)\n"
    equal(run("echo", *too_long), (USAGE, "", told), "a ping that never fits")
    for tool, target in (("probe", ["unix:@nobody-is-there"]), ("echo", ["--listen", "unix:@nobody-is-there"])):
        told = f"vigil-{tool}: --keepalive-only is for TCP, a Unix address has no keepalive (see vigil-{tool} --help)\n"
        equal(run(tool, *target, "--heartbeat-timeout", "20s", "--keepalive-only"), (USAGE, "", told), f"{tool}, Unix address")


@test
def an_unknown_option_is_named_whatever_else_is_wrong():
    wrong = [
        ("load", "--nope"),
        ("probe", "--nope"),
        ("echo", "--nope"),
        ("echo", "surplus", "--nope"),
        ("probe", "--nope", "0"),
        ("probe", "--nope=0"),
        ("probe", "127.0.0.1:1", "--nope", "0"),
        ("probe", "127.0.0.1", "--nope"),
        ("load", "--nope", "127.0.0.1:0"),
        ("load", "--size", "0", "--nope"),
    ]
    for command in wrong:
        status, out, error = run(*command)
        equal((status, out), (USAGE, ""), f"{command}: status and stdout")
        equal(error, f"vigil-{command[0]}: unknown option --nope (see vigil-{command[0]} --help)\n", f"{command}: stderr")
    _, _, error = run("probe", "--rate", 0, "-x")
    equal(error, "vigil-probe: unknown options --rate -x (see vigil-probe --help)\n", "two of them")
    _, _, error = run("echo", "--", "--nope")
    true("unknown option" not in error and "--nope" in error, f"after --: {error!r}")


@test
def the_checks_take_no_unknown_option():
    for driver in ([ROOT / "tools/check"], [sys.executable, ROOT / "tools/checks.py"]):
        for wrong in (["--nope"], ["--full", "nope"]):
            done = subprocess.run([*driver, *wrong], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
            equal((done.returncode, done.stdout, done.stderr.count("\n")), (USAGE, "", 1), f"{driver[-1]} {wrong}")
            true(f"'{wrong[-1]}'" in done.stderr, done.stderr)


@contextlib.contextmanager
def faults(*arguments, without=()):
    """tools/faults on the programs under test, less some privileges."""
    build = pathlib.Path(programs["echo"]).parent
    command = [*without, sys.executable, ROOT / "tools/fault_table.py", build, *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    with process:
        yield process
    watchdog.cancel()


def can_make_namespaces():
    return subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode == 0


@test
def the_faults_take_no_wrong_option():
    for wrong in (["--nope"], ["--only", "none"], ["--budget", "1s"], ["--budget", "5s-3s"], ["--rounds", 0], ["--seed", "x"]):
        with faults(*wrong) as process:
            out, error = process.communicate()
        equal((process.returncode, out, error.count("\n")), (USAGE, "", 1), f"{wrong}")
        true(error.startswith("faults: "), error)


@test
def the_faults_say_that_they_need_root():
    privileges = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"] if can_make_namespaces() else []
    with faults(without=privileges) as process:
        out, error = process.communicate()
    equal((process.returncode, out, error), (77, "skipped: needs root (network namespaces)\n", ""))


def children_of(process):
    found = []
    for threads in pathlib.Path(f"/proc/{process.pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended
            found += map(int, threads.read_text().split())
    return found


@test
def the_faults_leave_nothing_behind_however_they_end():
    if not can_make_namespaces():
        print("SKIPPED: the faults leave nothing behind however they end: needs root (network namespaces)")
        return
    ends = (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)
    for (number, status), thread in itertools.product(ends, (main_thread, a_thread_with_children)):
        what = f"signal {number} to {thread.__name__.replace('_', ' ')}"
        with faults("--only", "peer stopped for 0.7 budgets", "--budget", "1000s-2000s") as process:
            until = time.monotonic() + PATIENCE
            while len(started := [each for each in children_of(process) if is_fault_program(each)]) < 4:
                true(time.monotonic() < until and process.poll() is None, f"only {started} run")
            os.kill(thread(process), number)
            process.communicate()
        equal(process.returncode, status, f"status after {what}")
        while any(is_fault_program(each) for each in started):
            true(time.monotonic() < until, f"after {what} some of {started} still run")


def main_thread(process):
    return process.pid


def a_thread_with_children(process):
    """What is sent to this id is sent to the process, and this thread takes it."""
    for thread in pathlib.Path(f"/proc/{process.pid}/task").iterdir():
        if int(thread.name) != process.pid and (thread / "children").read_text():
            return int(thread.name)
    raise AssertionError("no other thread has children")


def is_fault_program(process_id):
    with contextlib.suppress(OSError):
        command = pathlib.Path(f"/proc/{process_id}/cmdline").read_text()
        return "fault_peer" in command or command.startswith((programs["echo"], programs["probe"]))
    return False


@test
def more_connections_than_descriptors_are_refused_before_anything_is_connected():
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    with Tool("load", "127.0.0.1:1", "--connections", 1000, preexec_fn=few) as load:
        equal(load.end(), USAGE, "status")
        true("descriptors" in load.error and load.error.count("\n") == 1, load.error)


@test
def help_is_printed_and_ends_with_status_0():
    for name in programs:
        status, out, error = run(name, "--help")
        equal((status, error), (0, ""), name)
        true("Usage" in out, f"{name}: {out!r}")


@test
def a_port_in_use_is_one_clear_line_and_status_1():
    with Echo() as echo:
        status, out, error = run("echo", "--listen", echo.address)
        equal((status, out), (1, ""))
        true("EADDRINUSE" in error and echo.address in error and error.count("\n") == 1, error)


@test
def every_connection_is_told_as_opened_and_closed_with_the_whole_record():
    with Echo() as echo:
        with echo.client() as client:
            client.sendall(b"hello")
            equal(client.recv(5, socket.MSG_WAITALL), b"hello", "the echo")
            name = "{}:{}".format(*client.getsockname())
        opened, closed = echo.event("opened"), echo.event("closed")
        equal((opened["id"], opened["peer"], opened["reactor"]), (1, name, 0))
        equal((closed["id"], closed["peer"], closed["reactor"]), (1, name, 0))
        true(closed["time_ns"] >= opened["time_ns"], "closed after opened")
        members = "verdict origin phase errno operation received handed_to_kernel unacknowledged unsent left_unread unconsumed"
        members += " age_ms silent_ms cut_short evidence"
        for member in members.split():
            true(member in closed, f"'{member}' is missing in {closed}")
        equal((closed["reason"], closed["received"], closed["handed_to_kernel"]), ("peer_finished", 5, 5))
        equal(echo.end(signal.SIGTERM), 0, "status")
        equal(echo.error, "", "stderr")


@test
def lines_for_people_name_the_address_and_the_reason():
    with Tool("echo", "--listen", "localhost:0", "--receive-timeout", "50ms") as echo:
        listening = echo.line()
        true(listening.startswith("listening on 127.0.0.1:"), listening)
        host, port = listening.removeprefix("listening on ").rsplit(":", 1)
        with socket.create_connection((host, int(port)), PATIENCE) as client:
            equal(client.recv(1), b"", "after the deadline")
            name = "{}:{}".format(*client.getsockname())
        equal(echo.line(), f"#1 {name} opened")
        closed = echo.line()
        true(closed.startswith(f"#1 {name} closed: receive_timed_out "), closed)
        equal(echo.end(signal.SIGINT), 0, "status")


def told_as(closed, reason, least_age_ms):
    """A limit of the tool's own ended it, and not before its time."""
    true(closed["age_ms"] >= least_age_ms, f"closed before its time: {closed}")
    got = {member: closed[member] for member in ("reason", "origin", "phase", "errno", "operation", "cut_short")}
    policy = {"origin": "policy", "phase": "open", "errno": 0, "operation": None, "cut_short": "none"}
    equal(got, {"reason": reason, **policy}, "the record")


@test
def the_deadlines_on_the_command_line_are_each_their_own_reason():
    for kind in ("first-byte", "receive"):
        with Echo(f"--{kind}-timeout", "50ms") as echo, echo.client() as mute:
            equal(mute.recv(1), b"")
            told_as(echo.event("closed"), f"{kind.replace('-', '_')}_timed_out", 50)
    with Echo("--message-timeout", "50ms") as echo, echo.client() as client:
        client.sendall(b"no end of a line")
        told_as(echo.event("closed"), "message_timed_out", 50)
    rate = ["--rate-grace", "200ms", "--rate-window", "100ms"]
    with Echo("--min-receive-rate", 1000, *rate) as echo, echo.client() as client:
        client.sendall(b"no end of a line")
        told_as(echo.event("closed"), "receive_too_slow", 300)
    with Echo("--flood", "--min-send-rate", 1000, *rate) as echo, echo.client():
        closed = echo.event("closed")
        told_as(closed, "send_too_slow", 300)
        true(closed["unsent"] > 1 << 20 and closed["unacknowledged"] > 0, closed)
    with Echo("--flood", "--send-timeout", "100ms") as echo, echo.client():
        equal(echo.event("closed")["reason"], "send_timed_out")
    with Echo("--accept-timeout", "30ms") as echo:
        true(echo.event("accept_timed_out")["after_ms"] >= 30, "not before its time")
        true(echo.event("accept_timed_out")["after_ms"] >= 30, "once per period")


@test
def a_client_that_reads_nothing_meets_the_backlog_bound():
    with Echo("--backlog-max", 100_000) as echo, echo.client() as client:
        with contextlib.suppress(ConnectionError):
            while True:
                client.sendall(bytes(65536))
        equal(echo.event("closed")["reason"], "backlog_full")


@test
def between_two_messages_no_message_is_late_or_slow():
    by_line = (b"one\ntwo\n", b"three\nand the beginning")
    by_size = (b"0123456789abcdefghij", b"0123456789abcdefghi")
    rate = ["--min-receive-rate", 1000, "--rate-grace", "100ms", "--rate-window", "50ms"]
    for whole, more in (by_line, by_size):
        for limit, reason, least_ms in (["--message-timeout", "150ms"], "message_timed_out", 150), (rate, "receive_too_slow", 150):
            extra = ["--reply-per-message", 10] if whole is by_size[0] else []
            with Echo(*limit, *extra) as echo, contextlib.ExitStack() as clients:
                with standing_still(echo):
                    patient = clients.enter_context(echo.client())
                    patient.sendall(whole)
                equal(patient.recv(len(whole), socket.MSG_WAITALL), whole, "the echo of whole messages")
                late = clients.enter_context(echo.client())
                told_as(closed := echo.event("closed"), reason, least_ms)
                equal(closed["peer"], "{}:{}".format(*late.getsockname()), "who was late")
                with standing_still(echo):  # now the patient one, who is older, is late too
                    patient.sendall(more)
                told_as(closed := echo.event("closed"), reason, 2 * least_ms)
                true(closed["silent_ms"] >= least_ms, f"closed before its time: {closed}")
                equal(closed["received"], len(whole + more), "what was received")


@test
def a_trickle_does_not_prolong_a_message():
    rate = ["--min-receive-rate", 1_000_000, "--rate-grace", "100ms", "--rate-window", "100ms"]
    for limit, reason in (["--message-timeout", "200ms"], "message_timed_out"), (rate, "receive_too_slow"):
        with Echo(*limit, "--stats", "5ms") as echo, echo.client() as client:
            while (event := json.loads(echo.line()))["event"] != "closed":
                with contextlib.suppress(ConnectionError):
                    client.sendall(b"x")
            told_as(event, reason, 200)
            true(event["received"] > 1, f"more than one byte came: {event}")


@test
def a_client_that_reads_nothing_is_read_no_more_where_pausing_is_asked_for():
    for bound, extra, size in (
        (100_000, [], 16 << 20),
        (4096, [], 16 << 20),
        (100_000, ["--reply-per-message", 1000], 16 << 20),
        (100_000, ["--reply-per-message", 90_000], 16 << 20),
        (100_000, ["--reply-delay", "1ms"], 16 << 20),
        (100_000, ["--reply-delay", "1ms", "--reply-per-message", 777], 16 << 20),
    ):
        told = f"a bound of {bound}, {extra}"
        with Echo("--when-backlogged", "pause", "--backlog-max", bound, "--stats", "5ms", *extra) as echo, echo.client() as client:

            def send_all():
                with contextlib.suppress(OSError):  # the test has failed meanwhile
                    client.sendall(bytes(size))
                    client.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send_all, daemon=True)
            sender.start()
            unmoved, before = 0, 0
            while unmoved < 20:  # the server stands, as far as one can see; if it does not, the test asks for less
                stats = echo.event("stats")
                equal(stats["closed"], 0, f"{told}: closed while nothing was read")
                true(stats["received_bytes"] - stats["sent_bytes"] <= bound, f"{told}: more waits than that: {stats}")
                unmoved = unmoved + 1 if stats["received_bytes"] == before > 0 else 0
                before = stats["received_bytes"]
            equal(len(read_to_the_end(client)), size, f"{told}: what came back once it was read")
            closed = echo.event("closed")
            equal((closed["reason"], closed["received"], closed["handed_to_kernel"]), ("peer_finished", size, size), told)
            sender.join(PATIENCE)


@test
def a_client_that_outruns_the_delayed_replies_meets_the_backlog_bound():
    for extra in ([], ["--reply-per-message", 100]):
        for pieces in ([5000], [600, 600], [1001]):
            with Echo("--reply-delay", "1h", "--backlog-max", 1000, *extra) as echo, echo.client() as client:
                with contextlib.suppress(OSError):  # it may end before everything is sent
                    for size in pieces:
                        client.sendall(bytes(size))
                    client.shutdown(socket.SHUT_WR)
                equal(echo.event("closed")["reason"], "backlog_full", f"{extra}, {pieces}")
                equal(read_to_the_end(client), b"", f"{extra}, {pieces}: what came back")


@test
def a_flood_never_ends_whatever_the_bound():
    for bound in (1, 1000, 100_000, 16 << 20):
        with Echo("--flood", "--backlog-max", bound) as echo, echo.client() as client:
            left = 4 << 20 if bound > 1000 else 10_000
            while left > 0:
                some = client.recv(min(left, 1 << 18))
                true(some, f"bound {bound}: the flood ended")
                left -= len(some)


@test
def replies_per_message_wait_for_whole_messages_and_the_rest_comes_at_the_end():
    with Echo("--reply-per-message", 10) as echo, echo.client() as client:
        client.sendall(b"0123456789abcde")
        equal(client.recv(100), b"0123456789")
        client.sendall(b"fghij!")
        equal(client.recv(100), b"abcdefghij")
        client.shutdown(socket.SHUT_WR)
        equal(read_to_the_end(client), b"!")
        closed = echo.event("closed")
        equal((closed["reason"], closed["received"], closed["handed_to_kernel"]), ("peer_finished", 21, 21))


@test
def delayed_replies_come_after_the_delay_also_to_a_peer_that_has_finished():
    with Echo("--reply-delay", "100ms") as echo, echo.client() as client:
        sent = time.monotonic()
        client.sendall(b"late")
        client.shutdown(socket.SHUT_WR)
        equal(read_to_the_end(client), b"late")
        true(time.monotonic() - sent >= 0.1, "the reply came before its time")
        equal(echo.event("closed")["reason"], "peer_finished")
    with Echo("--reply-delay", "1h", "--drain-timeout", "50ms") as echo, echo.client() as client:
        client.sendall(b"never")
        client.shutdown(socket.SHUT_WR)
        equal(echo.event("closed")["reason"], "drain_timed_out")


@test
def several_reactors_serve_one_port_and_each_tells_what_it_did():
    connections = 40  # the kernel spreads them by a hash: that all of them go to one reactor does not happen
    with Echo("--reactors", 2, "--stats", "1h") as echo:
        clients = [echo.client() for _ in range(connections)]
        for client in clients:
            client.sendall(b"hello")
            equal(client.recv(5), b"hello", "the echo")
        opened = [echo.event("opened") for _ in clients]
        echo.process.send_signal(signal.SIGTERM)
        for client in clients:  # each answers its reactor's end with its own
            equal(read_to_the_end(client), b"", "what came before the end")
            client.close()
        equal(echo.end(), 0, "status")

        closed = echo.events("closed")
        equal(len(echo.events("listening")), 1, "listening lines")
        equal({event["reactor"] for event in opened}, {0, 1}, "the reactors that served")
        equal(len({event["id"] for event in opened}), connections, "different ids")
        told = lambda events: sorted((event["id"], event["reactor"], event["peer"]) for event in events)
        equal(told(closed), told(opened), "who was closed")
        equal({(event["reason"], event["cut_short"]) for event in closed}, {("server_stopping", "none")}, "why")
        stats = echo.events("stats")
        equal(sorted(event["reactor"] for event in stats), [0, 1], "one line of stats for each at the end")
        for event in stats:
            equal(event["opened"], sum(other["reactor"] == event["reactor"] for other in opened), "opened by it")
            equal(event["closed"], event["opened"], "closed by it")


@test
def people_are_told_which_reactor_it_was_where_there_are_several():
    with Tool("echo", "--listen", "127.0.0.1:0", "--reactors", 2) as echo:
        address = echo.line().removeprefix("listening on ")
        host, port = address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), PATIENCE):
            opened = echo.line()
            true(opened.startswith(("reactor 0: #1 ", "reactor 1: #2 ")), opened)
        closed = echo.line()
        equal(closed.split(" ")[:3], opened.split(" ")[:3], "who was closed, and by which reactor")
        equal(echo.end(signal.SIGTERM), 0, "status")
        equal(echo.lines[-1], "stopped: 1 connections opened, 1 closed")


@test
def stats_name_every_counter():
    with Echo("--stats", "10ms") as echo, echo.client() as client:
        client.sendall(b"x")
        client.recv(1)
        while (stats := echo.event("stats"))["received_bytes"] == 0:
            pass
        equal((stats["reactor"], stats["opened"], stats["closed"], stats["sent_bytes"]), (0, 1, 0, 1))
        equal(stats["closed_for"]["peer_finished"], 0)
        for counter in "turns events receive_calls send_calls timers_fired shed loop_delay_ns_total loop_delay_ns_max".split():
            true(isinstance(stats[counter], int), counter)


@test
def a_signal_closes_everything_and_tells_it():
    for number in (signal.SIGTERM, signal.SIGINT):
        with Echo("--drain-timeout", "50ms") as echo, echo.client() as idle:
            echo.event("opened")
            equal(echo.end(number), 0, "status")
            equal([event["reason"] for event in echo.events("closed")], ["server_stopping"])
            equal(read_to_the_end(idle), b"")
    with Echo("--drain-timeout", "1h") as echo, echo.client() as idle:
        echo.event("opened")
        echo.process.send_signal(signal.SIGTERM)
        equal(idle.recv(1), b"", "our end, at the first signal")
        equal(echo.end(signal.SIGTERM), 0, "status at the second one")
        equal([event["reason"] for event in echo.events("closed")], ["server_stopping"])


@test
def a_reader_that_goes_away_ends_the_server_in_order():
    with Echo() as echo:
        echo.process.stdout.close()
        with echo.client() as client:
            read_to_the_end(client)  # nothing is printed before it has connected; then the broken pipe is met
        equal(echo.process.wait(PATIENCE), 0, "status")
        equal(echo.process.stderr.read(), "", "stderr")


@test
def a_reader_that_is_stuck_holds_up_no_connection():
    with Echo() as echo:
        for _ in range(1000):  # far more lines than a pipe holds
            with echo.client() as client:
                client.sendall(b"x")
                equal(client.recv(1), b"x")
        equal(echo.end(signal.SIGTERM), 0, "status")
        equal((len(echo.events("opened")), len(echo.events("closed"))), (1000, 1000))


@test
def a_full_disk_is_told_on_stderr():
    with open("/dev/full", "w") as full, closed_port() as address:
        done = subprocess.run([programs["probe"], address], stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    equal(done.returncode, 1, "status")
    true("No space left" in done.stderr and done.stderr.count("\n") == 1, done.stderr)


@test
def out_of_descriptors_the_server_sheds_and_says_so():
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
    with Echo(preexec_fn=few) as echo, contextlib.ExitStack() as clients:
        for _ in range(40):
            with contextlib.suppress(ConnectionResetError):  # one that is shed may be reset before its connect has returned
                clients.enter_context(echo.client())
        equal(echo.event("shed")["errno"], 24)
        paused = echo.event("accept_paused")
        true(paused["errno"] == 24 and paused["retry_ms"] > 0, paused)
        clients.close()
        true(echo.event("accept_resumed")["after_ms"] > 0, "resumed when there was room again")


@test
def more_connections_than_may_be_open_wait_their_turn():
    with Echo("--max-connections", 2) as echo, contextlib.ExitStack() as stack:
        with standing_still(echo):
            clients = [stack.enter_context(echo.client()) for _ in range(4)]
            for client in clients:
                client.sendall(b"x")
        equal(clients[1].recv(1), b"x", "the echo of the second")
        equal([echo.event("opened")["id"] for _ in range(2)], [1, 2])
        for leaves in (1, 2):
            clients[leaves - 1].close()
            equal(clients[leaves + 1].recv(1), b"x", "the echo of who waited")
        equal(echo.end(signal.SIGTERM), 0, "status")
        told = [(event["event"], event["id"]) for event in map(json.loads, echo.lines) if "id" in event]
        equal(told[2:6], [("closed", 1), ("opened", 3), ("closed", 2), ("opened", 4)], "what came in which order")
        equal(len(told), 8, "told in all")


@test
def a_probe_tells_accepted_and_rejected():
    with Echo() as echo:
        status, out, error = run("probe", echo.address)
        equal((status, error), (0, ""))
        true(out.startswith(f"{echo.address} accepted") and out.count("\n") == 1, out)
        status, out, _ = run("probe", echo.address, "--json", "--source", "127.0.0.2:0")
        equal((status, [json.loads(line)["event"] for line in out.splitlines()]), (0, ["opened", "closed"]))
        echo.event("opened")
        true(echo.event("opened")["peer"].startswith("127.0.0.2:"), "the source was used")
    with closed_port() as address:
        status, out, error = run("probe", address)
        equal((status, error), (1, ""))
        true("rejected" in out and "ECONNREFUSED" in out, out)
        status, out, _ = run("probe", address, "--json")
        equal((status, json.loads(out)["reason"], json.loads(out)["phase"]), (1, "connect_refused", "connecting"))


@test
def a_probe_that_gets_no_answer_times_out():
    with socket.socket() as full, contextlib.ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = "127.0.0.1:{}".format(full.getsockname()[1])
        for _ in range(8):  # the accept queue is full after one or two: later handshakes get no answer
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        status, out, _ = run("probe", address, "--connect-timeout", "200ms")
        equal(status, 2, out)
        true("timed out" in out, out)


@test
def a_held_probe_stays_and_tells_how_the_connection_ends():
    with Echo("--receive-timeout", "100ms") as echo:
        status, out, _ = run("probe", echo.address, "--hold", "--json")
        equal((status, [json.loads(line)["event"] for line in out.splitlines()]), (0, ["opened", "closed"]))
        equal(json.loads(out.splitlines()[1])["reason"], "peer_finished")
        equal(echo.event("closed")["reason"], "receive_timed_out")
    with Echo() as echo:
        status, out, _ = run("probe", echo.address, "--hold", "--receive-timeout", "50ms")
        equal(status, 4, out)
        true("receive_timed_out" in out, out)
        status, out, _ = run("probe", echo.address, "--finish")
        equal(status, 0, out)
        true("peer_finished" in out, out)
        with Tool("probe", echo.address, "--hold", "--json") as probe:
            probe.event("opened")
            equal(probe.end(signal.SIGTERM), 0, "status")
            equal([event["reason"] for event in probe.events("closed")], ["local_close"])


@test
def a_probe_without_a_way_says_unreachable():
    status, out, error = run("probe", "255.255.255.255:9")  # no stream goes to a broadcast address
    equal((status, error), (3, ""))
    true(" unreachable after " in out, out)
    status, out, _ = run("probe", "255.255.255.255:9", "--json")
    equal((status, json.loads(out)["reason"], json.loads(out)["origin"]), (3, "connect_unreachable", "network"))


@test
def a_deadline_or_rate_given_to_a_probe_holds_the_connection_until_it_passes():
    rate = ["--rate-grace", "100ms", "--rate-window", "50ms"]
    with socket.create_server(("127.0.0.1", 0)) as silent, python_server(lambda some, before: some) as echoing:
        address = "127.0.0.1:{}".format(silent.getsockname()[1])
        for options, reason, least_ms in (
            (["--first-byte-timeout", "50ms"], "first_byte_timed_out", 50),
            (["--receive-timeout", "50ms"], "receive_timed_out", 50),
            (["--message-timeout", "50ms"], "message_timed_out", 50),
            (["--min-receive-rate", 1, *rate], "receive_too_slow", 150),
            (["--flood", "--send-timeout", "100ms"], "send_timed_out", 100),
            (["--flood", "--min-send-rate", 1, *rate], "send_too_slow", 150),
        ):
            status, out, error = run("probe", address, "--json", *options)
            equal((status, error), (4, ""), f"{options}")
            opened, closed = map(json.loads, out.splitlines())
            equal((opened["event"], closed["event"]), ("opened", "closed"), f"{options}")
            told_as(closed, reason, least_ms)
        # Zeros come back, and no end of a line: the message that began with the connection is late, the first byte is not.
        status, out, _ = run("probe", echoing, "--json", "--flood", "--first-byte-timeout", "30s", "--message-timeout", "300ms")
        closed = json.loads(out.splitlines()[-1])
        told_as(closed, "message_timed_out", 300)
        true(closed["received"] > 0, closed)


HEARTBEAT = ["--heartbeat-timeout", "1800ms", "--heartbeat-interval", "200ms"]


def lost(closed, verdict, budget_ms):
    told_as(closed, "heartbeat_lost", budget_ms)
    equal(closed["verdict"], verdict, f"the verdict of {closed}")
    true(closed["silent_ms"] >= budget_ms, f"lost before its time: {closed}")
    evidence = closed["evidence"]
    equal((evidence["known"], evidence["unacknowledged_segments"]), (True, 0), f"the evidence of {closed}")
    return evidence


@test
def a_probe_pings_a_silent_server_and_tells_that_it_hangs():
    for options, ping in (
        ([], b"ping\n"),
        (["--ping", "are you there?"], b"are you there?"),
        (["--ping", r"a\\\x00\x7fz\0\r\n\t"], b"a\\\0\x7fz\0\r\n\t"),
    ):
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = "127.0.0.1:{}".format(server.getsockname()[1])
            with Tool("probe", address, "--json", *HEARTBEAT, *options) as probe:
                connection = server.accept()[0]
                with connection:
                    equal(connection.recv(len(ping), socket.MSG_WAITALL), ping, "the first ping")
                    evidence = lost(probe.event("closed"), "hung", 1800)  # nobody answers, and the kernel acknowledges
                    equal(probe.end(), 4, "status")
                    true(evidence["acknowledged_in_silence"], f"somebody's kernel answered: {evidence}")
                    rest = read_to_the_end(connection)
                    equal(len(ping + rest), evidence["sent_in_silence"], "bytes sent into the silence")
                    true(rest and rest == ping * (len(rest) // len(ping)), f"more pings, and nothing else: {rest!r}")


@test
def a_server_pings_its_silent_clients_and_tells_which_of_them_hangs():
    with Echo(*HEARTBEAT, "--stats", "10ms") as echo, echo.client() as hung, echo.client() as alive:
        hung_name = "{}:{}".format(*hung.getsockname())
        alive.settimeout(PATIENCE)

        def answer():
            with contextlib.suppress(OSError):
                while alive.recv(100):  # whatever comes: a ping, or the echo of an answer
                    alive.sendall(b"pong\n")

        threading.Thread(target=answer, daemon=True).start()
        closed = echo.event("closed")
        equal(closed["peer"], hung_name, "who was lost")
        lost(closed, "hung", 1800)
        first_received = echo.event("stats")["received_bytes"]
        while echo.event("stats")["received_bytes"] == first_received:
            pass  # the one that answers is spoken to after the other was lost


@test
def a_peer_that_takes_nothing_is_told_as_not_reading():
    with Echo("--flood", *HEARTBEAT) as echo, echo.client():
        lost(echo.event("closed"), "not_reading", 1800)


@test
def with_phi_a_peer_that_used_to_answer_fast_is_lost_long_before_its_budget():
    with Echo("--heartbeat-timeout", "60s", "--heartbeat-interval", "100ms", "--phi", "8") as echo, echo.client() as client:
        heard = client.makefile("rb")
        for _ in range(12):
            while heard.readline() != b"ping\n":  # it echoes the answers
                pass
            client.sendall(b"pong\n")
        record = echo.event("closed")
        equal((record["reason"], record["verdict"]), ("heartbeat_lost", "hung"), "reason and verdict")
        equal(record["silent_ms"] >= 1600, True, f"no sooner than two retransmissions take: {record['silent_ms']} ms")
        equal(record["silent_ms"] < 30_000, True, f"long before the budget: {record['silent_ms']} ms")
        equal(record["evidence"]["phi"] >= 8, True, f"phi is told: {record['evidence']}")


@test
def a_budget_that_keepalive_does_not_keep_as_it_is_given_is_told():
    with socket.socket() as closed_port:
        closed_port.bind(("127.0.0.1", 0))
        address = "127.0.0.1:{}".format(closed_port.getsockname()[1])
        for budget, kept in (("2s", "4.00 s instead of 2.00 s"), ("4900ms", "4.00 s instead of 4.90 s"), ("4s", None)):
            status, out, error = run("probe", address, "--heartbeat-timeout", budget, "--keepalive-only")
            told = f"vigil-probe: --keepalive-only counts whole seconds, at least 4: a loss is told within {kept}\n" if kept else ""
            equal((status, error), (1, told), budget)
            true("rejected" in out, out)


@test
def keepalive_alone_leaves_an_idle_connection_in_peace():
    with Echo("--heartbeat-timeout", "1s", "--keepalive-only", "--stats", "100ms") as echo, echo.client():
        before = echo.event("stats")["time_ns"]
        while (stats := echo.event("stats"))["time_ns"] < before + 3_000_000_000:
            equal((stats["closed"], stats["sent_bytes"]), (0, 0), "closed, and sent by it")


@test
def a_held_probe_that_is_asked_to_end_waits_for_the_drain_deadline():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = "127.0.0.1:{}".format(silent.getsockname()[1])
        with Tool("probe", address, "--drain-timeout", "50ms", "--json") as probe:
            probe.event("opened")
            equal(probe.end(signal.SIGTERM), 4, "status")
            closed = probe.events("closed")[0]
            equal((closed["reason"], closed["cut_short"]), ("local_close", "timed_out"))


@test
def a_probe_reads_no_faster_than_it_is_told_and_still_reads_it_all():
    for read_rate, size in (400_000, 200_000), (3000, 4000), (100_000_000, 30_000_000):
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = "127.0.0.1:{}".format(server.getsockname()[1])
            with Tool("probe", address, "--read-rate", read_rate, "--json") as probe:
                connection = server.accept()[0]
                with connection:
                    connection.sendall(bytes(size))
                closed = probe.event("closed")
                equal(probe.end(), 0, "status")
            equal((closed["reason"], closed["received"]), ("peer_finished", size), f"{read_rate} bytes a second")
            true(closed["age_ms"] >= 1000 * size / read_rate - 101, f"{read_rate} bytes a second: read too fast: {closed}")


@test
def a_probe_that_reads_slowly_is_told_of_a_reset_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "127.0.0.1:{}".format(server.getsockname()[1])
        with Tool("probe", address, "--read-rate", 1000, "--json") as probe:
            connection = server.accept()[0]
            connection.sendall(bytes(200_000))  # more than three minutes' worth
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
            equal(probe.event("closed")["reason"], "peer_reset")
            equal(probe.end(), 4, "status")


@test
def a_flooding_probe_fills_a_server_that_does_not_read():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "127.0.0.1:{}".format(server.getsockname()[1])
        status, out, _ = run("probe", address, "--flood", "--send-timeout", "100ms", "--json")
        closed = json.loads(out.splitlines()[-1])
        equal((status, closed["reason"]), (4, "send_timed_out"))
        true(closed["unsent"] > 1 << 20, closed)


@test
def a_load_counts_measures_and_finds_no_error():
    with Echo() as echo:
        common = [echo.address, "--json", "--warmup", "50ms", "--duration", "300ms"]
        for extra in (
            [],
            ["--connections", 50, "--pipeline", 16],
            ["--connections", 3, "--size", 1_000_003, "--pipeline", 2],
            ["--connections", 4, "--size", 131_071],
            ["--connections", 10, "--rate", 500],
            ["--connections", 500],
        ):
            status, out, error = run("load", *common, *extra)
            result = json.loads(out)
            equal((status, result["event"], result["errors"], error), (0, "result", 0, ""), f"{extra}")
            true(result["messages"] > 0 and result["bytes"] > 0 and result["seconds"] > 0, f"{extra}: {result}")
            order = [result[key] for key in ("p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns")]
            equal(order, sorted(order), f"{extra}: the quantiles' order")
            members = "event time_ns messages bytes errors seconds p50_ns p90_ns p99_ns p999_ns max_ns".split()
            equal(list(result), members + (["due", "never_sent"] if "--rate" in extra else []), f"{extra}: the members")
            if "--rate" in extra:
                equal(result["due"], 150, f"{extra}: 500 a second for 300 ms")
                true(result["messages"] <= 0.35 * 500 + 1, f"{extra}: {result['messages']} messages are more than were due")
        equal(echo.end(signal.SIGTERM), 0, "the server's status")
        equal(len(echo.events("opened")), len(echo.events("closed")), "opened and closed")
        equal({event["reason"] for event in echo.events("closed")}, {"peer_finished"})


@test
def a_load_notices_every_kind_of_wrong_echo():
    late = 50_000  # bytes that are echoed as they should be
    wrong = {
        "changes a byte": lambda some, before: some[:-1] + bytes([some[-1] ^ 1]) if before > late else some,
        "loses a byte": lambda some, before: some[1:] if before > late else some,
        "swaps two bytes": lambda some, before: some[1::-1] + some[2:] if before > late else some,
        "adds a byte": lambda some, before: some + b"x" if before > late else some,
        "says something first": lambda some, before: some if before else b"220 welcome\r\n" + some,
        "falls silent": lambda some, before: some if before < late else b"",
    }
    for what, answer in wrong.items():
        with python_server(answer) as address:
            status, out, error = run("load", address, "--json", "--pipeline", 4, "--warmup", "0s", "--duration", "2s")
            result = json.loads(out)
            equal((status, result["errors"]), (1, 1), f"a server that {what}")
            true(error.count("\n") == 1, f"a server that {what}: {error!r}")


@test
def a_stalled_server_can_not_hide_the_messages_it_kept_from_being_sent():
    with Echo() as echo, Tool("load", echo.address, "--rate", 1000, "--warmup", "0s", "--duration", "3s", "--json") as load:
        echo.event("opened")
        echo.process.send_signal(signal.SIGSTOP)
        equal(load.end(), 1, "status")
        echo.process.send_signal(signal.SIGCONT)
        result = load.events("result")[0]
        true(result["p90_ns"] > 1_000_000_000, f"most messages were not answered within the second after the end: {result}")


@test
def a_rate_that_nobody_can_keep_ends_on_time_and_is_said():
    common = ["--rate", 100_000_000, "--warmup", "0ms"]
    for extra in ([], ["--connections", 50, "--pipeline", 4]):
        with Echo() as echo:
            status, out, error = run("load", echo.address, *common, *extra, "--duration", "1s", "--json")
            result = json.loads(out)
            equal((status, result["errors"], error), (0, 0, ""), f"{extra}: status, errors and stderr")
            equal((result["seconds"], result["due"]), (1.0, 100_000_000), f"{extra}: what was asked for")
            true(0 < result["messages"] <= result["due"] - result["never_sent"] < result["due"], f"{extra}: {result}")
            true(result["p50_ns"] > 100_000_000, f"{extra}: most messages waited, and the latencies hide it: {result}")
            status, out, _ = run("load", echo.address, *common, *extra, "--duration", "100ms")
            true(status == 0 and "rate        not kept: of 10,000,000 messages due " in out, f"{extra}: {out}")
            true("warm-up" not in out, f"{extra}: {out}")
    with Echo() as echo:
        behind = ["--rate", 100_000_000, "--warmup", "200ms", "--duration", "100ms"]
        _, out, _ = run("load", echo.address, *behind)
        told = "of 10,000,000 messages due 10,000,000 were never sent; some of those answered had been due in the warm-up"
        true(told in out, f"a load that is still busy with its warm-up: {out}")
    with Echo() as echo, Tool("load", echo.address, *common, "--duration", "1h", "--json") as load:
        echo.event("opened")
        equal(load.end(signal.SIGINT), 0, "status of an interrupted one")
        equal(load.events("result")[0]["errors"], 0, "errors of an interrupted one")


@test
def a_load_interrupted_reports_what_it_has():
    with Echo() as echo, Tool("load", echo.address, "--warmup", "0s", "--duration", "1h", "--json") as load:
        echo.event("opened")
        equal(load.end(signal.SIGINT), 0, "status")
        result = load.events("result")[0]
        equal(result["errors"], 0)
        true(result["seconds"] < PATIENCE, result)


@test
def a_load_tells_a_refused_connection_and_a_server_that_dies():
    with closed_port() as address:
        status, out, error = run("load", address, "--json", "--connections", 3)
        equal((status, json.loads(out)["errors"], json.loads(out)["p50_ns"]), (1, 3, None))
        true("ECONNREFUSED" in error and error.count("\n") == 1, error)
    with Echo() as echo, Tool("load", echo.address, "--connections", 5, "--duration", "1h", "--json") as load:
        for _ in range(5):
            echo.event("opened")
        echo.process.kill()
        equal(load.end(), 1, "status")
        equal(load.events("result")[0]["errors"], 5)


@test
def a_simulation_is_the_same_with_any_number_of_threads():
    def tables(threads):
        _, out, _ = run("simulate", "--seed", 5, "--lives", 200, "--keep-going", "--threads", threads)
        true("reasons told" in out and "digest" in out, out)
        return [line for line in out.splitlines() if not line.startswith("Simulating") and "violations in" not in line]

    equal(tables(1), tables(3), "what is told")


@test
def a_simulated_world_can_be_had_again():
    first = run("simulate", "--seed", 5, "--world", 1, "--trace")
    equal(run("simulate", "--seed", 5, "--world", 1, "--trace"), first, "the world")
    true("epoll_wait" in first[1] and "SYN" in first[1] and "digest" in first[1], "a line for each call and segment")
    true(run("simulate", "--seed", 6, "--world", 1)[1] != run("simulate", "--seed", 5, "--world", 1)[1], "another seed, another world")


@test
def a_simulation_in_which_a_fault_never_happened_or_something_was_never_told_fails():
    status, out, _ = run("simulate", "--seed", 5, "--lives", 1, "--threads", 1)
    equal(status, 1, "status")
    for never in ("NEVER HAPPENED: host_hung", "NEVER TOLD: send_timed_out", "NEVER TOLD of a lost heartbeat: not_reading"):
        true(never in out, out)


@test
def options_of_a_simulation_that_contradict_each_other_are_refused():
    for arguments in (["--lives", 1, "--minutes", 1], ["--trace"], ["--lives", 0], ["--world"], ["--world", 1, "--lives", 1]):
        status, out, error = run("simulate", *arguments)
        equal((status, out, error.count("\n")), (USAGE, "", 1), str(arguments))


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    programs.update({name: str(build / f"vigil-{name}") for name in ("echo", "probe", "load", "simulate")})
    wanted = sys.argv[2:]
    failed = 0
    chosen = [each for each in tests if not wanted or each.__name__ in wanted]
    for each in chosen:
        try:
            each()
        except (AssertionError, OSError, subprocess.SubprocessError, ValueError, KeyError, IndexError) as problem:
            failed += 1
            lines = [frame.lineno for frame in traceback.extract_tb(problem.__traceback__) if frame.name == each.__name__]
            print(f"FAILED {each.__name__.replace('_', ' ')} (line {lines[-1]}): {problem or type(problem).__name__}", flush=True)
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
