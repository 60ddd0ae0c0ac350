#!/usr/bin/env python3
"""The other side of a connection that vigil watches, on plain sockets: answers each "ping\\n" with "pong\\n".

    fault_peer.py listen|connect ADDRESS PORT [delay=SECONDS] [read_rate=BYTES] [buffer=BYTES] [connections=N]

Says `ready` once it listens and `connected` for the first connection. Does what it is told on its standard input, a word a line:
`stop-reading` (says `unread` once bytes wait), `reset`, `finish-and-reset` (says `reset`). Ends with its standard input.
"""

import collections
import fcntl
import os
import select
import socket
import struct
import sys
import termios
import time

PING, PONG = b"ping\n", b"pong\n"


def say(word):
    print(word, flush=True)


class Connection:
    def __init__(self, connected, options):
        self.socket = connected
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.delay = float(options.get("delay", 0))
        self.read_rate = int(options.get("read_rate", 0))
        self.read_again = 0.0
        self.reads = True
        self.rest = b""  # of a ping that has begun
        self.due = collections.deque()

    def wants_to_read(self, now):
        return self.reads and now >= self.read_again

    def next_due(self, now):
        """When there is something to do that no byte brings; None: never."""
        instants = [self.due[0]] if self.due else []
        if self.reads and self.read_again > now:
            instants.append(self.read_again)
        return min(instants, default=None)

    def read(self, now):
        """False at the end."""
        at_most = max(self.read_rate // 20, 1) if self.read_rate else 1 << 18
        try:
            some = self.socket.recv(at_most)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if self.read_rate:
            self.read_again = now + len(some) / self.read_rate
        text = self.rest + some
        self.due.extend([now + self.delay] * text.count(PING))
        self.rest = text[text.rfind(b"\n") + 1 :][: len(PING)]
        return bool(some)

    def answer(self, now):
        while self.due and self.due[0] <= now:
            self.due.popleft()
            try:
                self.socket.send(PONG)
            except OSError:
                self.due.clear()

    def unread(self):
        return struct.unpack("i", fcntl.ioctl(self.socket, termios.FIONREAD, b"\0\0\0\0"))[0]

    def reset(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def obey(command, connection):
    """False: the connection is gone."""
    if command == "stop-reading":
        connection.reads = False
        while not connection.unread():
            time.sleep(0.002)
        say("unread")
        return True
    if command == "finish-and-reset":
        connection.socket.shutdown(socket.SHUT_WR)
    elif command != "reset":
        raise ValueError(command)
    connection.reset()
    say("reset")
    return False


def live(connections):
    told = b""
    by_socket = {each.socket: each for each in connections}
    while True:
        now = time.monotonic()
        dues = [due for due in (each.next_due(now) for each in by_socket.values()) if due is not None]
        wait = max(min(dues) - now, 0) if dues else None
        reading = [sock for sock, each in by_socket.items() if each.wants_to_read(now)]
        ready, _, _ = select.select([0, *reading], [], [], wait)
        now = time.monotonic()
        for each in by_socket.values():
            each.answer(now)
        for sock in ready:
            if sock == 0:
                some = os.read(0, 4096)
                if not some:
                    return
                told += some
            elif not by_socket[sock].read(now):
                del by_socket[sock]
                sock.close()
            else:
                by_socket[sock].answer(now)
        while b"\n" in told:
            command, _, told = told.partition(b"\n")
            for sock in list(by_socket):
                if not obey(command.decode(), by_socket[sock]):
                    del by_socket[sock]


def main():
    how, address, port, *rest = sys.argv[1:]
    options = dict(each.split("=") for each in rest)
    count = int(options.get("connections", 1))

    def prepared():
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if "buffer" in options:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, int(options["buffer"]))
        return made

    connections = []
    if how == "listen":
        listener = prepared()
        listener.bind((address, int(port)))
        listener.listen(count)
        say("ready")
        for _ in range(count):
            connections.append(Connection(listener.accept()[0], options))
        listener.close()
    else:
        for _ in range(count):
            made = prepared()
            made.connect((address, int(port)))
            connections.append(Connection(made, options))
    say("connected")
    live(connections)


if __name__ == "__main__":
    main()
