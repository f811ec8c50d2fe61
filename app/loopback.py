"""Who can reach an address: as long as there is no log-in, only this machine may."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_to_others(host: str) -> str:
    """Why the workbench refuses an address, and what to do."""
    return (f"{host} can be reached by others, and the workbench has no log-in: whoever reaches it owns it. Use "
            "127.0.0.1; from another machine, go through `ssh -L 8501:127.0.0.1:8501 THIS-MACHINE`.")
