#!/usr/bin/env python3
"""vigil's main job, shown: an echo server under load, and beside the load five clients that end in five different ways.

    main_job.py BUILD-DIRECTORY [--duration SECONDS]

Starts vigil-echo with a receive deadline on every connection and vigil-load against it, ends five real connections (orderly close,
reset, silence, half-close with data owed, connect to a closed port) and compares what vigil said with what was done. Exits 0 only
if every line is right. `tools/quickstart` builds the programs and runs this.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

RECEIVE_DEADLINE = 1.0  # seconds; what vigil-echo is told
LATE_BY_AT_MOST = 3.0  # a tick is 1 ms; the rest is for a machine that does other things too
OWED_BYTES = 8 * 1024 * 1024  # more than the kernel's buffers hold, less than the send queue's bound
LOAD_CONNECTIONS = 50
PATIENCE = 30.0  # seconds until something that must happen counts as never happening


class Wrong(Exception):
    """Something that must happen did not."""


class EchoServer:
    """vigil-echo as a child process; every JSON line it prints is kept and can be waited for."""

    def __init__(self, program):
        command = [program, "--listen", "127.0.0.1:0", "--receive-timeout", f"{RECEIVE_DEADLINE:g}s", "--json"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self.events = []
        self.changed = threading.Condition()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        self.address = self.wait_for(lambda event: event["event"] == "listening", "to listen")["address"]
        self.port = int(self.address.rpartition(":")[2])

    def read(self):
        for line in self.process.stdout:
            with self.changed:
                self.events.append(json.loads(line))
                self.changed.notify_all()
        with self.changed:
            self.changed.notify_all()

    def wait_for(self, wanted, what):
        """The first event that `wanted` accepts, among those already printed and those to come."""
        with self.changed:
            until = time.monotonic() + PATIENCE
            looked_at = 0
            while True:
                for event in self.events[looked_at:]:
                    if wanted(event):
                        return event
                looked_at = len(self.events)
                if self.process.poll() is not None and not self.reader.is_alive():
                    raise Wrong(f"vigil-echo ended with status {self.process.returncode}, was to go on {what}")
                if time.monotonic() > until:
                    raise Wrong(f"vigil-echo was awaited {PATIENCE:g} s {what}")
                self.changed.wait(0.5)

    def closed(self, peer):
        return self.wait_for(lambda event: event["event"] == "closed" and event["peer"] == peer, f"to close {peer}")

    def count(self, kind):
        with self.changed:
            return sum(event["event"] == kind for event in self.events)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE)
        self.reader.join(PATIENCE)
        return status


class Client:
    """A connection that has been echoed to once, so that its end is the end of an open connection."""

    def __init__(self, server):
        self.socket = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
        self.name = "{}:{}".format(*self.socket.getsockname())
        self.last_sent = time.monotonic_ns()
        self.socket.sendall(b"hello")
        if self.read_exactly(5) != b"hello":
            raise Wrong(f"{self.name}: the echo is not what was sent")

    def read_exactly(self, size):
        received = bytearray()
        while len(received) < size:
            some = self.socket.recv(min(size - len(received), 1 << 18))
            if not some:
                break
            received += some
        return bytes(received)


def close_orderly(server):
    client = Client(server)
    done = time.monotonic_ns()
    client.socket.close()
    record = server.closed(client.name)
    return record["reason"], record["time_ns"] - done, ""


def reset(server):
    client = Client(server)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    done = time.monotonic_ns()
    client.socket.close()
    record = server.closed(client.name)
    return record["reason"], record["time_ns"] - done, ""


def fall_silent(server):
    client = Client(server)
    rest = client.socket.recv(1)
    took = time.monotonic_ns() - client.last_sent
    client.socket.close()
    record = server.closed(client.name)
    complaint = ""
    if rest:
        complaint = "bytes nobody sent came back"
    elif took < RECEIVE_DEADLINE * 1e9:
        complaint = "before its deadline"
    elif took > (RECEIVE_DEADLINE + LATE_BY_AT_MOST) * 1e9:
        complaint = "long after its deadline"
    return record["reason"], took, complaint


def finish_while_owed(server):
    client = Client(server)
    owed = random.Random(7).randbytes(OWED_BYTES)
    client.socket.sendall(owed)
    done = time.monotonic_ns()
    client.socket.shutdown(socket.SHUT_WR)
    echoed = client.read_exactly(OWED_BYTES)
    more = client.socket.recv(1)
    client.socket.close()
    record = server.closed(client.name)
    complaint = ""
    if echoed != owed or more:
        complaint = f"{len(echoed) + len(more)} of {OWED_BYTES} bytes came back" if len(echoed) < OWED_BYTES else "other bytes came back"
    elif record["received"] != 5 + OWED_BYTES or record["unsent"] != 0:
        complaint = f"the record says received {record['received']}, unsent {record['unsent']}"
    return record["reason"], record["time_ns"] - done, complaint


def connect_to_a_closed_port(probe):
    with socket.socket() as bound:  # bound and not listening: the port is closed, and nobody else takes it meanwhile
        bound.bind(("127.0.0.1", 0))
        done = time.monotonic_ns()
        ended = subprocess.run([probe, "127.0.0.1:{}".format(bound.getsockname()[1])], capture_output=True, text=True, timeout=PATIENCE)
        took = time.monotonic_ns() - done
    said = "rejected" if "rejected" in ended.stdout else ended.stdout.strip() or ended.stderr.strip() or "nothing"
    return said, took, "" if ended.returncode == 1 else f"exit status {ended.returncode}"


def readable(nanoseconds):
    if nanoseconds >= 1e9:
        return f"{nanoseconds / 1e9:.3f} s"
    unit, size = ("ms", 1e6) if nanoseconds >= 1e6 else ("µs", 1e3)
    return f"{nanoseconds / size:.3g} {unit}" if nanoseconds < 1000 * size else f"{nanoseconds / size:.0f} {unit}"


def print_table(rows):
    head = ("what was done", "what vigil said", "after how long", "")
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(3)]
    for row in [head, tuple("-" * width for width in widths) + ("",), *rows]:
        print(f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip())


def run_load(program, server, duration):
    command = [program, f"127.0.0.1:{server.port}", "--connections", LOAD_CONNECTIONS, "--size", 64, "--pipeline", 1]
    command += ["--duration", f"{duration:g}s", "--warmup", "1s", "--json"]
    return subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def load_result(load, duration):
    output, _ = load.communicate(timeout=duration + PATIENCE)
    for line in output.splitlines():
        event = json.loads(line)
        if event["event"] == "result":
            return event
    raise Wrong(f"vigil-load ended with status {load.returncode} and without a result")


def main_job(programs, duration):
    rows = []  # (what was done, what vigil said, after how long, right or what is wrong)

    def row(done, expected, said, took, complaint=""):
        verdict = complaint or ("" if said == expected else f"expected {expected}")
        rows.append((done, said, readable(took) if took is not None else "", f"WRONG: {verdict}" if verdict else "right"))

    with contextlib.ExitStack() as at_the_end:
        server = EchoServer(programs["echo"])
        at_the_end.callback(server.process.kill)
        print(f"vigil-echo listens on {server.address}; every connection has a receive deadline of {RECEIVE_DEADLINE:g} s.")
        print(f"vigil-load keeps {LOAD_CONNECTIONS} connections busy for {duration + 1:g} s; five more clients end in five ways.", flush=True)

        load = run_load(programs["load"], server, duration)
        at_the_end.callback(load.kill)
        server.wait_for(lambda event: server.count("opened") >= LOAD_CONNECTIONS, "to open the load's connections")

        for done, expected, client in (
            ("closes in good order", "peer_finished", close_orderly),
            ("resets", "peer_reset", reset),
            ("falls silent", "receive_timed_out", fall_silent),
            (f"finishes, {OWED_BYTES >> 20} MiB of echo still owed", "peer_finished", finish_while_owed),
        ):
            try:
                row(done, expected, *client(server))
            except (Wrong, OSError) as problem:
                row(done, expected, "-", None, str(problem))
        row("connects to a closed port", "rejected", *connect_to_a_closed_port(programs["probe"]))

        result = load_result(load, duration)
        status = server.stop()
        opened, closed = server.count("opened"), server.count("closed")

    seconds, messages = result["seconds"], result["messages"]
    print()
    if messages > 0:
        print(f"throughput  {messages / seconds:,.0f} echoes of 64 bytes a second over {LOAD_CONNECTIONS} connections, every byte compared")
        latencies = (("p50", "p50_ns"), ("p90", "p90_ns"), ("p99", "p99_ns"), ("p99.9", "p999_ns"), ("max", "max_ns"))
        print("latency     " + "   ".join(f"{name} {readable(result[key])}" for name, key in latencies))
        print()
    print_table(rows)
    print()

    wrong = [f"a client that {done}: {verdict}" for done, _, _, verdict in rows if verdict != "right"]
    if messages == 0 or result["errors"] != 0 or load.returncode != 0:
        wrong.append(f"the load: {messages} messages, {result['errors']} errors, exit status {load.returncode}")
    if opened != closed or opened != LOAD_CONNECTIONS + 4:
        wrong.append(f"{LOAD_CONNECTIONS + 4} connections were made, vigil-echo told {opened} as opened and {closed} as closed")
    if status != 0:
        wrong.append(f"vigil-echo ended with status {status}")
    if wrong:
        print("\n".join(f"WRONG: {line}" for line in wrong))
        return 1
    print(f"All of it is right: {opened} connections opened, and each one's end told once, on time, with the true reason.")
    return 0


def main():
    parser = argparse.ArgumentParser(description="Runs vigil's main job on the programs in a build directory.")
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--duration", type=float, default=4, metavar="SECONDS", help="of the measured load (4)")
    arguments = parser.parse_args()
    programs = {name: arguments.build.resolve() / f"vigil-{name}" for name in ("echo", "load", "probe")}
    for program in programs.values():
        if not os.access(program, os.X_OK):
            print(f"main_job: {program} is not built", file=sys.stderr)
            return 1
    try:
        return main_job(programs, arguments.duration)
    except (Wrong, OSError, subprocess.TimeoutExpired, ValueError, KeyError) as problem:
        print(f"WRONG: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
