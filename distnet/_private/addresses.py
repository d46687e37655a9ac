"""Where the shards of a server listen, and what others are told of that: addresses as text. Standard library only."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence

from distnet.errors import ConfigError

__all__ = ["advertised", "check_address", "shard_endpoint", "usable_elsewhere"]

_EVERY_INTERFACE = ("0.0.0.0", "[::]", "::")
_LOOK_UP_SECONDS = 1.0
_USUAL_PORT = 7400
_NOWHERE = ("192.0.2.1", 9)  # an address for documentation (RFC 5737): nothing is sent to it


def check_address(name: str, address: object, *, several: bool = False) -> None:
    """Refuse what is no address where it is clear what was meant; the engine refuses the rest.

    Args:
        name: of the argument.
        address: of a server.
        several: whether addresses joined by commas are allowed, as ``server.address`` has them.

    Raises:
        ConfigError: it is no text, or an address without its scheme or port, with another scheme, or a port too high.
    """
    if not isinstance(address, str):
        raise ConfigError(f"{name} is {address!r}; expected a text such as shm:// or tcp://host:{_USUAL_PORT}")
    for one in address.split(",") if several else [address]:
        if meant := _meant_by(one):
            raise ConfigError(f"{name} {one!r} is neither shm://name nor tcp://host:port{meant}")


def _meant_by(address: str) -> str:
    scheme, separator, rest = address.rpartition("://")
    rest = rest.rstrip("/")
    if not rest or scheme == "shm" or set(rest) & set(" /\t\n"):
        return ""
    host, _, port = rest.rpartition(":")
    if rest.endswith("]") or not host or (rest.count(":") > 1 and not host.endswith("]")):
        return f"; it has no port: did you mean tcp://{rest}:{_USUAL_PORT}?" if rest.count(":") in (0, 7) else ""
    if not (port.isascii() and port.isdigit()):
        return ""
    if int(port) > 65535:
        return f"; the port {port[:20]} is above 65535, the highest"
    return "" if separator and scheme == "tcp" else f"; did you mean tcp://{rest}?"


def shard_endpoint(address: str, shard: int) -> str:
    """Return where shard number `shard` listens, for the address of shard 0: the next ports, or names with a number."""
    if shard == 0:
        return address
    scheme, _, rest = address.partition("://")
    if scheme == "tcp":
        host, _, port = rest.rpartition(":")
        return f"tcp://{host}:{int(port) + shard if port.isdigit() and int(port) else 0}"
    return f"{scheme}://{rest}.{shard}" if rest else address


def advertised(advertise: str | Sequence[str], endpoints: Sequence[str]) -> list[str]:
    """Return what clients are told instead of `endpoints`, where the shards listen.

    Args:
        advertise: a host, which stands in for that of each endpoint; ``tcp://host:port``, where the first shard is
            found, and the others at the ports after it; or a list of either, one for each shard, also comma-joined.
        endpoints: ``tcp://host:port`` of each shard.

    Raises:
        ConfigError: it is none of these, or the shards listen at ``shm://``.
    """
    if not all(endpoint.startswith("tcp://") for endpoint in endpoints):
        raise ConfigError(f"advertise={advertise!r} is for servers at tcp://host:port; this one is at {endpoints[0]}")
    if isinstance(advertise, str) and "," not in advertise:
        if "://" in advertise:
            first = _advertised_at(advertise, endpoints[0])
            return [shard_endpoint(first, shard) for shard in range(len(endpoints))]
        return [_advertised_at(advertise, endpoint) for endpoint in endpoints]
    given = advertise.split(",") if isinstance(advertise, str) else list(advertise)
    if len(given) != len(endpoints):
        raise ConfigError(f"advertise= names {len(given)} addresses for {len(endpoints)} shards; give one for each")
    return [_advertised_at(one, endpoint) for one, endpoint in zip(given, endpoints, strict=True)]


def _advertised_at(one: object, endpoint: str) -> str:
    text = one if isinstance(one, str) else ""
    scheme, separator, rest = text.rpartition("://")
    host, colon, port = rest.rpartition(":")
    if separator and scheme == "tcp" and host and port.isdigit() and 0 < int(port) < 65536 and "," not in host:
        return text
    bare = text.removeprefix("[").removesuffix("]")
    if not bare or separator or (colon and bare.count(":") < 2) or set(bare) & set(" ,/\t\n"):
        looks_right = not separator and bare.count(":") == 1 and port.isdigit() and 0 < int(port) < 65536
        meant = f"; did you mean tcp://{bare}?" if looks_right else ""
        raise ConfigError(f"advertise is {one!r}; expected a host, tcp://host:port, or a list of them{meant}")
    return f"tcp://{f'[{bare}]' if ':' in bare else bare}:{endpoint.rpartition(':')[2]}"


def usable_elsewhere(endpoint: str) -> str:
    """Return an address by which another machine finds the endpoint: this host's name where it is every interface."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not endpoint.startswith("tcp://") or host not in _EVERY_INTERFACE:
        return endpoint
    return f"tcp://{_name_of_this_host()}:{port}"


def _name_of_this_host() -> str:
    """Return this host's name; its number where it does not know itself by name, as a container without one."""
    name = socket.gethostname()
    return name if _is_known(name) else _number_of_this_host()


def _is_known(name: str) -> bool:
    """Return whether the system says within a second where the name leads: a name server may be slow."""
    known = threading.Event()

    def look_up() -> None:
        with contextlib.suppress(OSError, UnicodeError):
            socket.getaddrinfo(name, None)
            known.set()

    thread = threading.Thread(target=look_up, name="looks this host up", daemon=True)
    thread.start()
    thread.join(_LOOK_UP_SECONDS)
    return known.is_set()


def _number_of_this_host() -> str:
    """Return the address of the interface that leads to other networks, or loopback where none does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(_NOWHERE)
        return str(probe.getsockname()[0])
    return "127.0.0.1"
