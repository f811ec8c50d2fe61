"""Which servers a reward may ask, and with which key: the operator's lists, in two environment variables.

PALATE_REWARD_SERVERS lists servers (`https://scores.example.com`, `http://127.0.0.1:8000`) and networks
(`10.0.0.0/8`), apart by commas or spaces. A server that is not listed is never asked. A name that leads to an address
of the inside (private, loopback, link-local …) is refused too, unless that address is in a listed network: else whoever
holds the name could point it at this machine. A server listed by such an address, or as localhost, is meant as it is.

PALATE_REWARD_KEYS lists keys by server, `https://api.example.com=KEY`, in the same way.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from pydantic import SecretStr

SERVERS_VARIABLE = "PALATE_REWARD_SERVERS"
KEYS_VARIABLE = "PALATE_REWARD_KEYS"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_UNICAST = ipaddress.IPv6Network("2000::/3")


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port of a server."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """The origin of an address. Raises ValueError if it is none."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError("it is no http:// or https:// address")
        return cls(parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))

    @property
    def netloc(self) -> str:
        """Host and port as an address has them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"


@dataclass(frozen=True)
class AllowedServers:
    """The operator's lists."""

    origins: frozenset[Origin]
    networks: tuple[Network, ...]
    keys: Mapping[Origin, SecretStr]

    @classmethod
    def from_environment(cls) -> AllowedServers:
        """What the two variables say. Raises ValueError, naming the entry (never a key) that cannot be read."""
        origins: set[Origin] = set()
        networks: list[Network] = []
        for entry in _entries(SERVERS_VARIABLE):
            try:
                if "://" in entry:
                    origins.add(Origin.of(entry))
                else:
                    networks.append(ipaddress.ip_network(entry))
            except ValueError as error:
                raise ValueError(
                    f"{SERVERS_VARIABLE} lists {entry}, which is neither a server such as http://127.0.0.1:8000 nor a "
                    "network such as 10.0.0.0/8."
                ) from error
        return cls(frozenset(origins), tuple(networks), _read_keys())

    def require(self, url: str) -> Origin:
        """The origin of a listed server. Raises ValueError, with what to set, for any other."""
        origin = Origin.of(url)
        if origin not in self.origins:
            raise ValueError(
                f"The server {origin} is not allowed: have the operator add it to {SERVERS_VARIABLE} "
                f"({SERVERS_VARIABLE}={origin})."
            )
        return origin

    def resolve(self, origin: Origin) -> str:
        """The address to connect to, looked up once. Raises ValueError for one of the inside that is not listed."""
        try:
            found = socket.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise ValueError(f"The server {origin} has no address: its name is not known here.") from error
        addresses = [ipaddress.ip_address(str(place[0]).partition("%")[0]) for *_, place in found]
        usable = [address for address in addresses if self._may_reach(origin, address)]
        if not usable:
            raise ValueError(
                f"The server {origin} leads to {addresses[0]}, an address of the inside: have the operator add "
                f"that network to {SERVERS_VARIABLE} ({SERVERS_VARIABLE}={origin},{addresses[0]})."
            )
        return str(usable[0])

    def _may_reach(self, origin: Origin, address: Address) -> bool:
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        as_listed = _is_address(origin.host) or (origin.host == "localhost" and address.is_loopback)
        return as_listed or _is_outside(address) or any(address in network for network in self.networks)


def _is_outside(address: Address) -> bool:
    """Whether it is of the open internet, and no IPv6 wrapping of an IPv4 address, which hides where it leads."""
    if isinstance(address, ipaddress.IPv6Address) and (address not in _UNICAST or address.sixtofour is not None):
        return False
    return address.is_global and not address.is_multicast


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _entries(variable: str) -> list[str]:
    return [entry for entry in re.split(r"[,\s]+", os.environ.get(variable, "")) if entry]


def _read_keys() -> dict[Origin, SecretStr]:
    keys: dict[Origin, SecretStr] = {}
    for place, entry in enumerate(_entries(KEYS_VARIABLE)):
        server, _, key = entry.partition("=")
        try:
            if not (key and key.isascii() and key.isprintable()):
                raise ValueError("there is no key")
            keys[Origin.of(server)] = SecretStr(key)
        except ValueError:
            # Neither the entry nor what it is made of may be shown: a key may stand where a server should.
            raise ValueError(
                f"Entry {place + 1} of {KEYS_VARIABLE} is not of the form https://SERVER=KEY."
            ) from None
    return keys
