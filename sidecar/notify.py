"""What a service manager is told: one datagram for each change of state, as sd_notify(3) describes them.

Rule: never waits. A manager that does not read loses a word, and the sidecar nothing.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Mapping

READY = "READY=1"
RELOADING = "RELOADING=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"


def notifier(environment: Mapping[str, str]) -> Callable[[str], None]:
    """Return what tells a state to the manager that started us; it does nothing where none did."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return lambda _state: None
    target = f"\0{address[1:]}" if address.startswith("@") else address
    watched = "WATCHDOG_USEC" in environment

    def notify(state: str) -> None:
        if state == ALIVE and not watched:
            return
        if state == RELOADING:  # Type=notify-reload compares it with the time of its signal
            state = f"{state}\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out, contextlib.suppress(OSError):
            out.settimeout(0)
            out.sendto(state.encode(), target)

    return notify
