"""Two hosts and a router between them, each a network namespace without a name, and processes that run on them.

Nothing is left behind: a namespace lives as long as a process or a descriptor in it, every process dies with the thread that
started it, and so all of it ends with this program, however that ends. Needs root. A thread that has entered a namespace starts
its processes there; the main thread never does.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import threading
import time

CLONE_NEWNET = 0x40000000

NEAR, NEAR_GATEWAY = "10.77.1.2", "10.77.1.1"  # vigil's host
FAR, FAR_GATEWAY = "10.77.2.2", "10.77.2.1"  # the peer's

libc = ctypes.CDLL(None, use_errno=True)
run_lock = threading.Lock()
running = set()


class Broken(Exception):
    """Something that a fault needs could not be set up, or a program said something unexpected."""


def call(function, *arguments):
    if getattr(libc, function)(*arguments) != 0:
        problem = ctypes.get_errno()
        raise OSError(problem, os.strerror(problem), function)


def can_make_namespaces():
    """In a process of its own, which has its own network for the rest of its short life."""
    return subprocess.run(["unshare", "--net", "true"], stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


class Host:
    """A network namespace."""

    def __init__(self):
        call("unshare", CLONE_NEWNET)  # of this thread alone
        self.descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.path = f"/proc/{os.getpid()}/fd/{self.descriptor}"  # how `ip` is told of it

    def enter(self):
        call("setns", self.descriptor, CLONE_NEWNET)

    def run(self, *command, text=""):
        self.enter()
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise Broken(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}\n{text}")

    def ip(self, *lines):
        self.run("ip", "-batch", "-", text="\n".join(lines) + "\n")

    def setting(self, name, value):
        self.enter()  # /proc/sys/net shows the network of whoever opens it
        with open(f"/proc/sys/net/{name}", "w") as file:
            file.write(value)

    def close(self):
        os.close(self.descriptor)


class Network:
    """near - router - far. Each fault is a method; what it changes comes back with the method that heals it."""

    def __init__(self):
        with open("/proc/thread-self/ns/net") as home:
            self.near, self.router, self.far = Host(), Host(), Host()
            self.hosts = [self.near, self.router, self.far]
            call("setns", home.fileno(), CLONE_NEWNET)
        self.router.setting("ipv4/ip_forward", "1")
        self.router.setting("ipv4/icmp_ratelimit", "0")
        self.plug(self.near, "near", NEAR, NEAR_GATEWAY)
        self.plug(self.far, "far", FAR, FAR_GATEWAY)

    def plug(self, host, port, address, gateway):
        host.ip(f"link add eth0 type veth peer name {port} netns {self.router.path}", "link set lo up")
        host.ip(f"address add {address}/24 dev eth0", "link set eth0 up", f"route add default via {gateway}")
        self.router.ip(f"address add {gateway}/24 dev {port}", f"link set {port} up")

    def forward(self, *rules):
        """What the router does with packets; without rules, forwards them all."""
        lines = ["table ip fault {}", "delete table ip fault"]  # deleting what is not there would fail
        if rules:
            lines += ["table ip fault {", "chain forward {", "type filter hook forward priority 0", *rules, "}", "}"]
        self.router.run("nft", "-f", "-", text="\n".join(lines) + "\n")

    def narrow(self, bits_per_second):
        """A flood would keep the machine busy that measures."""
        shape = f"rate {bits_per_second} burst 16kb latency 50ms".split()
        self.router.run("tc", "qdisc", "add", "dev", "far", "root", "tbf", *shape)

    def replace_far(self):
        """Another host at the same place, which has the address and knows nothing."""
        self.far.ip("link delete eth0")
        other = Host()
        self.hosts.append(other)
        self.plug(other, "far", FAR, FAR_GATEWAY)

    def near_link_up(self):
        """As whoever manages that host does it: the kernel drops the routes over a link that goes down."""
        self.near.ip("link set eth0 up", f"route replace default via {NEAR_GATEWAY}")

    def close(self):
        for host in self.hosts:
            host.close()


class Program:
    """A process on a host, whose lines can be waited for."""

    def __init__(self, host, *command):
        host.enter()
        # Its parent, for this purpose, is the thread.
        with run_lock:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *map(str, command)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the driver
            )
            running.add(self)
        self.name = command[0]
        self.buffer = b""
        self.lines = []

    def line(self, until):
        """The next line, or None if none comes until then. Raises if it ends instead."""
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([self.process.stdout], [], [], max(until - time.monotonic(), 0))
            if not ready:
                return None
            some = os.read(self.process.stdout.fileno(), 65536)
            if not some:
                raise Broken(f"{self.name} ended: {self.process.stderr.read().decode().strip() or 'without a word'}")
            self.buffer += some
        line, _, self.buffer = self.buffer.partition(b"\n")
        self.lines.append(line.decode())
        return self.lines[-1]

    def expect(self, word, seconds=30):
        until = time.monotonic() + seconds
        while (line := self.line(until)) != word:
            if line is None:
                raise Broken(f"{self.name} did not say '{word}' within {seconds} s")

    def event(self, kind, until):
        """The next JSON line of that kind, or None."""
        while (line := self.line(until)) is not None:
            event = json.loads(line)
            if event["event"] == kind:
                return event
        return None

    def tell(self, line):
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def stop(self):
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def kill(self):
        self.process.kill()

    def end(self):
        self.kill()
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.stderr.close()
        self.process.wait()
        with run_lock:
            running.discard(self)


def kill_all():
    """For good: whoever would start or end a program then waits, until this program ends."""
    run_lock.acquire()
    for program in running:
        program.kill()
