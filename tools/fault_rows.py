"""The faults that tools/faults injects, what vigil is to say of each, and what it must not report.

A row is a fault, done to a connection on which vigil watches its peer; its times are drawn from the seed. `told` is what vigil is
to say: the reason, with the verdict where it is heartbeat_lost; NOTHING where the connection is to live on.
"""

import dataclasses
import time
import typing

from fault_network import FAR

NOTHING = "nothing"
HUNG, NOT_READING, UNREACHABLE = (f"heartbeat_lost, {verdict}" for verdict in ("hung", "not_reading", "unreachable"))
UNDECIDED = "heartbeat_lost, unknown"
RESET, FINISHED, TIMED_OUT = "peer_reset", "peer_finished", "network_timed_out"


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    told: str
    inject: typing.Callable  # (scene): does it; for NOTHING, also heals it
    flood: bool = False  # vigil's send queue is kept full
    stretch: float = 1  # so many budgets instead of one
    peer: typing.Callable = lambda scene: {}  # how the peer is started
    intervals: tuple = (1 / 10, 1 / 4)  # of the budget, between pings
    keepalive: bool = False  # the kernel's probes alone
    at_once: bool = False  # told without waiting for a ping
    watch: float = 2.0  # budgets for which nothing must be said, after what was injected


def sleep_until(instant):
    time.sleep(max(instant - time.monotonic(), 0))


# What is injected ----------------------------------------------------------------------------------------------------------


def forward(*rules):
    return lambda scene: scene.network.forward(*rules)


TO_PEER, FROM_PEER = f"ip daddr {FAR}", f"ip saddr {FAR}"


def near_route(route):
    """A route of vigil's own host that leads nowhere."""
    return lambda scene: scene.network.near.ip(f"route replace {route}")


def stops_reading(scene):
    scene.peer.tell("stop-reading")
    scene.peer.expect("unread")


def stops_reading_then_link_down(scene):
    stops_reading(scene)
    sleep_until(time.monotonic() + scene.random.uniform(0.1, 0.2) * scene.budget)  # its window closes meanwhile
    scene.network.far.ip("link set eth0 down")


def power_off(scene):
    """Nothing is said any more; its process ends behind a link that is gone."""
    scene.network.far.ip("link delete eth0")
    scene.peer.kill()


def finish_and_reset_unread(scene):
    scene.vigil.stop()
    try:
        scene.peer.tell("finish-and-reset")
        scene.peer.expect("reset")
    finally:
        scene.vigil.resume()


def kill_with_unread(scene):
    stops_reading(scene)
    scene.peer.kill()


# What is to be survived ----------------------------------------------------------------------------------------------------


def partition_that_heals(scene):
    began = time.monotonic()
    scene.network.forward("drop")
    sleep_until(began + scene.budget / 3)
    scene.network.forward()


def near_flap(scene):
    scene.network.near.ip("link set eth0 down")
    time.sleep(scene.random.uniform(0.02, 0.1) * scene.budget)
    scene.network.near_link_up()


def router_flap(scene):
    scene.network.router.ip("link set far down")
    time.sleep(scene.random.uniform(0.02, 0.1) * scene.budget)
    scene.network.router.ip("link set far up")


def peer_stops_for_a_while(scene):
    began = time.monotonic()
    scene.peer.stop()
    sleep_until(began + 0.7 * scene.budget)
    scene.peer.resume()
    scene.lasted(time.monotonic() - began, 0.7 * scene.budget)


def vigil_stops(scene):
    scene.vigil.stop()
    time.sleep(scene.random.uniform(1.1, 1.6) * scene.budget)
    scene.vigil.resume()


def nothing(scene):
    """The peer is as it is, from the beginning."""


def late_answers(scene):
    """The whole of it, with the ping's own wait, inside the budget."""
    return {"delay": scene.random.uniform(0.3, 0.8) * (scene.budget - scene.interval)}


def slow_reader(scene):
    # It takes a part of its buffer many times within a budget: the acknowledgements tell.
    return {"buffer": 32768, "read_rate": scene.random.randrange(50_000, 200_000)}


def small_window(scene):
    return {"buffer": 65536}


ROWS = [
    Row("peer hangs (SIGSTOP)", HUNG, lambda scene: scene.peer.stop()),
    Row("peer hangs, send queue full", NOT_READING, lambda scene: scene.peer.stop(), flood=True, peer=small_window),
    Row("peer stops reading, send queue full", NOT_READING, stops_reading, flood=True, peer=small_window),
    Row("peer stops reading, answers no ping", HUNG, stops_reading),
    Row("peer stops reading, then its link goes down", UNREACHABLE, stops_reading_then_link_down, flood=True, peer=small_window),
    Row("silent partition, both ways", UNREACHABLE, forward("drop")),
    Row("silent partition, both ways, while sending", UNREACHABLE, forward("drop"), flood=True),
    Row("silent partition, to the peer", UNREACHABLE, forward(f"{TO_PEER} drop")),
    Row("silent partition, from the peer", UNREACHABLE, forward(f"{FROM_PEER} drop")),
    Row("peer's link down", UNREACHABLE, lambda scene: scene.network.far.ip("link set eth0 down")),
    Row("our link down", UNREACHABLE, lambda scene: scene.network.near.ip("link set eth0 down")),
    Row("our link down, while sending", UNREACHABLE, lambda scene: scene.network.near.ip("link set eth0 down"), flood=True),
    Row("route deleted", UNREACHABLE, lambda scene: scene.network.near.ip("route delete default")),
    Row("route blackholed", UNREACHABLE, near_route("blackhole default")),
    Row("route unreachable", UNREACHABLE, near_route("unreachable default")),
    Row("route deleted on the way", UNREACHABLE, lambda scene: scene.network.router.ip(f"route delete {FAR[:-1]}0/24")),
    Row("ICMP admin-prohibited", UNREACHABLE, forward(f"{TO_PEER} reject with icmp type admin-prohibited")),
    Row("ICMP host-unreachable", UNREACHABLE, forward(f"{TO_PEER} reject with icmp type host-unreachable")),
    Row("peer's host gone", UNREACHABLE, power_off),
    Row("peer's host replaced by one that knows nothing", RESET, lambda scene: scene.network.replace_far()),
    Row("firewall answers with RST", RESET, forward(f"{TO_PEER} meta l4proto tcp reject with tcp reset")),
    Row("reset with data in flight", RESET, lambda scene: scene.peer.tell("reset"), flood=True, at_once=True),
    Row("FIN, then RST, before we read", FINISHED, finish_and_reset_unread, at_once=True),
    Row("FIN, then RST, before we read, data owed", RESET, finish_and_reset_unread, flood=True, at_once=True),
    Row("kill -9 with unread data", RESET, kill_with_unread, at_once=True),
    Row("silent partition, keepalive only", TIMED_OUT, forward("drop"), keepalive=True),
    Row("silent partition, keepalive only, while sending", TIMED_OUT, forward("drop"), keepalive=True, flood=True),
    Row("peer hangs, keepalive only: not to be found", NOTHING, lambda scene: scene.peer.stop(), keepalive=True),
    Row("partition that heals at a third of the budget", NOTHING, partition_that_heals),
    # The kernel may take a second to see that a link is back.
    Row("our link flaps", NOTHING, near_flap, stretch=2),
    Row("a link on the way flaps", NOTHING, router_flap, stretch=2),
    # With less, a chain of lost retransmissions would now and then be as long as the budget.
    Row("10 % random loss", NOTHING, forward("numgen random mod 10 < 1 drop"), stretch=4, watch=1.5),
    Row("peer answers late, inside the budget", NOTHING, nothing, peer=late_answers, watch=3),
    Row("peer stopped for 0.7 budgets", NOTHING, peer_stops_for_a_while, intervals=(1 / 10, 1 / 5)),
    Row("we are stopped for longer than the budget", NOTHING, vigil_stops),
    Row("we are stopped for longer than the budget, sending", NOTHING, vigil_stops, flood=True),
    Row("slow reader that drains", NOTHING, nothing, flood=True, peer=slow_reader, watch=3),
]
