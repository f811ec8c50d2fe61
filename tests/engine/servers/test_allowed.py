"""Only servers of the operator's list are asked, at the address that was checked, with a key that nobody sees."""

from __future__ import annotations

import socket

import pytest

from engine.servers.allowed import KEYS_VARIABLE, SERVERS_VARIABLE, AllowedServers, Origin
from workers.engine_process import engine_environment

CANARY = "sk-canary-7f3a"


def allowed(monkeypatch: pytest.MonkeyPatch, servers: str, keys: str = "") -> AllowedServers:
    monkeypatch.setenv(SERVERS_VARIABLE, servers)
    monkeypatch.setenv(KEYS_VARIABLE, keys)
    return AllowedServers.from_environment()


def names_lead_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, **_: [
        (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
        for address in addresses
    ])  # fmt: skip


@pytest.mark.parametrize("url", [
    "http://other.example:8000/score", "https://scores.example:8000/score", "http://scores.example/score",
    "http://scores.example.evil.example:8000", "http://127.0.0.1:8000",
])  # fmt: skip
def test_a_server_that_is_not_listed_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    with pytest.raises(ValueError, match=f"is not allowed: have the operator add it to {SERVERS_VARIABLE}"):
        allowed(monkeypatch, "http://scores.example:8000").require(url)


def test_none_is_allowed_where_nothing_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVERS_VARIABLE, raising=False)
    with pytest.raises(ValueError, match="is not allowed"):
        AllowedServers.from_environment().require("http://127.0.0.1:8000")


def test_a_listed_server_is_allowed_whatever_its_path_and_case(monkeypatch: pytest.MonkeyPatch) -> None:
    both = allowed(monkeypatch, "https://Scores.example/v1, http://127.0.0.1:8000")
    assert both.require("https://scores.EXAMPLE:443/other") == Origin("https", "scores.example", 443)
    assert both.resolve(both.require("http://127.0.0.1:8000")) == "127.0.0.1"


@pytest.mark.parametrize("address", [
    "127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.9", "172.16.0.1", "0.0.0.0", "::1", "fe80::1", "fd00::1",
    "::ffff:127.0.0.1", "100.64.0.1", "224.0.0.1",
    "64:ff9b::7f00:1", "2002:7f00:1::", "::127.0.0.1", "fec0::1",
])  # fmt: skip
def test_a_name_may_not_lead_inside(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    names_lead_to(monkeypatch, address)
    servers = allowed(monkeypatch, "https://scores.example")
    with pytest.raises(ValueError, match="an address of the inside"):
        servers.resolve(servers.require("https://scores.example"))


def test_a_listed_network_opens_the_inside_to_names_that_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    names_lead_to(monkeypatch, "10.1.2.3")
    servers = allowed(monkeypatch, "http://gpu.lab:8000 10.0.0.0/8")
    assert servers.resolve(servers.require("http://gpu.lab:8000/v1")) == "10.1.2.3"
    with pytest.raises(ValueError, match="is not allowed"):
        servers.require("http://10.1.2.3:8000")


def test_of_several_addresses_one_of_the_outside_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = allowed(monkeypatch, "https://scores.example")
    for outside in ("93.184.216.34", "2606:2800:220:1::1"):
        names_lead_to(monkeypatch, "10.0.0.1", outside)
        assert servers.resolve(servers.require("https://scores.example")) == outside


def test_localhost_is_meant_as_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = allowed(monkeypatch, "http://localhost:8000")
    names_lead_to(monkeypatch, "127.0.0.1")
    assert servers.resolve(servers.require("http://localhost:8000")) == "127.0.0.1"
    names_lead_to(monkeypatch, "10.0.0.1")
    with pytest.raises(ValueError, match="an address of the inside"):
        servers.resolve(servers.require("http://localhost:8000"))


@pytest.mark.parametrize("entry", ["scores.example", "ftp://scores.example", "10.0.0.1/8", "http://"])
def test_a_list_that_cannot_be_read_names_the_entry(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    with pytest.raises(ValueError, match=f"{SERVERS_VARIABLE} lists {entry}, which is neither"):
        allowed(monkeypatch, entry)


@pytest.mark.parametrize("entry", [CANARY, f"{CANARY}=https://api.example", f"api.example={CANARY}"])
def test_a_key_that_cannot_be_read_is_not_shown(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    with pytest.raises(ValueError, match="Entry 1 of PALATE_REWARD_KEYS is not of the form") as refusal:
        allowed(monkeypatch, "", entry)
    assert CANARY not in str(refusal.value) and refusal.value.__cause__ is None


def test_keys_are_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = allowed(monkeypatch, "", f"https://api.example/v1={CANARY}==")
    assert servers.keys[Origin("https", "api.example", 443)].get_secret_value() == f"{CANARY}=="
    assert CANARY not in repr(servers)


def test_the_engine_is_told_both_lists_and_nothing_else_of_the_workbench(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (SERVERS_VARIABLE, KEYS_VARIABLE, "PALATE_DATABASE_URL"):
        monkeypatch.setenv(name, "x")
    told = {name for name in engine_environment() if name.startswith("PALATE_")}
    assert told == {SERVERS_VARIABLE, KEYS_VARIABLE}
