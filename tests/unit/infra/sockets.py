"""Where processes listen, as the kernel says it: the listening sockets of /proc/net that one of them has open."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable
from pathlib import Path

LISTENING = "0A"  # TCP_LISTEN of the kernel
UNCONNECTED = "07"  # how a UDP socket that takes from everybody is written


def listening(pids: Iterable[int]) -> dict[int, set[str]]:
    """By process, the `address:port` of every TCP or UDP socket that it takes connections or datagrams on."""
    addresses = _listening_by_inode()
    return {pid: {addresses[inode] for inode in _inodes_of(pid) & addresses.keys()} for pid in pids}


def is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address.rpartition(":")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def _listening_by_inode() -> dict[str, str]:
    found = {}
    for table, state in (("tcp", LISTENING), ("tcp6", LISTENING), ("udp", UNCONNECTED), ("udp6", UNCONNECTED)):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == state:
                    found[fields[9]] = _address(fields[1])
    return found


def _address(text: str) -> str:
    """`0100007F:2328` is 127.0.0.1:9000: words of four bytes, each in the machine's order."""
    digits, _, port = text.partition(":")
    words = [bytes.fromhex(digits[at : at + 8])[::-1] for at in range(0, len(digits), 8)]
    return f"{ipaddress.ip_address(b''.join(words))}:{int(port, 16)}"


def _inodes_of(pid: int) -> set[str]:
    links = set()
    with contextlib.suppress(OSError):  # it has ended
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                links.add(str(entry.readlink()))
    return {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:[")}
