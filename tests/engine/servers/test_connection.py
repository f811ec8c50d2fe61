"""One request: within time and size, at one address, tried again where that may help, and never with a key shown."""

from __future__ import annotations

import ssl
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from engine.servers.allowed import KEYS_VARIABLE, SERVERS_VARIABLE
from engine.servers.connection import LARGEST_ANSWER, Connection, ServerError
from tests.loopback_server import Answer, Loopback, Stall, origin_of, serve

CANARY = "sk-canary-7f3a"


def connection_to(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[Connection, list[float]]:
    """A connection, and the pauses that it makes without making them."""
    monkeypatch.setenv(SERVERS_VARIABLE, origin_of(loopback))
    pauses: list[float] = []
    return replace(Connection.to(loopback.settings(**options)), pause=pauses.append), pauses


def test_what_is_asked_and_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    with serve(lambda asked: {"twice": asked["number"] * 2}) as loopback:
        connection, _ = connection_to(loopback, monkeypatch)
        assert connection.ask({"number": 4}, "/more") == {"twice": 8}
        path, headers, _ = loopback.asked[0]
        assert path == "/score/more"
        assert headers["Host"] == origin_of(loopback).removeprefix("http://")
        assert "Authorization" not in headers


def test_the_address_that_was_checked_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda asked: {}) as loopback:
        connection, _ = connection_to(loopback, monkeypatch)
        # As if the name led elsewhere by now: it is not looked up again.
        elsewhere = replace(connection, origin=replace(connection.origin, host="scores.example"))
        assert elsewhere.ask({}) == {}
        assert loopback.asked[0][1]["Host"].startswith("scores.example:")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """An authority of the test's own, and a server's context with a certificate of it for scores.example."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    authority.issue_cert("scores.example").configure_cert(context)
    return tmp_path / "authority.pem", context


def test_https_holds_the_certificate_to_the_name(
    monkeypatch: pytest.MonkeyPatch, certificate: tuple[Path, ssl.SSLContext]
) -> None:
    authority, context = certificate
    with serve(lambda asked: {"fine": True}, context) as loopback:
        by_address, pauses = connection_to(loopback, monkeypatch, retries=2)
        by_name = replace(by_address, origin=replace(by_address.origin, host="scores.example"))
        for connection in (by_address, by_name):
            with pytest.raises(ServerError, match=r"no secure connection .*CERTIFICATE_VERIFY_FAILED"):
                connection.ask({})
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        assert by_name.ask({}) == {"fine": True}
        with pytest.raises(ServerError, match=r"no secure connection .*CERTIFICATE_VERIFY_FAILED"):
            by_address.ask({})
        assert len(loopback.asked) == 1 and pauses == []


def test_a_secure_server_that_stalls(monkeypatch: pytest.MonkeyPatch, certificate: tuple[Path, ssl.SSLContext]) -> None:
    authority, context = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    with serve(lambda asked: Stall(drips=True), context) as loopback:
        connection, _ = connection_to(loopback, monkeypatch, timeout=0.3)
        connection = replace(connection, origin=replace(connection.origin, host="scores.example"))
        with pytest.raises(ServerError, match=r"did not answer within 0.3 s"):
            connection.ask({})


@pytest.mark.parametrize("stall", [Stall(), Stall(drips=True)])
def test_an_answer_that_does_not_come_whole_in_time(monkeypatch: pytest.MonkeyPatch, stall: Stall) -> None:
    with serve(lambda asked: stall) as loopback:
        connection, _ = connection_to(loopback, monkeypatch, timeout=0.15)
        begun = time.perf_counter()
        with pytest.raises(ServerError, match=r"did not answer within 0.15 s"):
            connection.ask({})
        assert time.perf_counter() - begun < 2.0


@pytest.mark.parametrize(("status", "tries"), [(500, 3), (503, 3), (429, 3), (400, 1), (404, 1), (401, 1)])
def test_only_what_may_go_better_is_tried_again(monkeypatch: pytest.MonkeyPatch, status: int, tries: int) -> None:
    with serve(lambda asked: (status, {}, b"no luck")) as loopback:
        connection, pauses = connection_to(loopback, monkeypatch, retries=2)
        with pytest.raises(ServerError, match=str(status)):
            connection.ask({})
        assert len(loopback.asked) == tries == len(pauses) + 1
    assert all(0.375 * 2**i <= pause <= 0.625 * 2**i for i, pause in enumerate(pauses))


def test_a_second_try_may_succeed_after_the_pause_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [(429, {"Retry-After": "7"}, b""), (503, {"Retry-After": "9999"}, b""), {"good": True}]
    with serve(lambda asked: answers.pop(0)) as loopback:
        connection, pauses = connection_to(loopback, monkeypatch, retries=2)
        assert connection.ask({}) == {"good": True}
    assert pauses == [7.0, 30.0]


def test_a_server_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda asked: {}) as loopback:
        connection, pauses = connection_to(loopback, monkeypatch, retries=1)
    with pytest.raises(ServerError, match="no server answers at") as failure:
        connection.ask({})
    assert failure.value.may_go_better
    assert len(pauses) == 1


def test_redirects_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda asked: {}) as inside:
        elsewhere: Answer = lambda asked: (307, {"Location": inside.url}, b"")  # noqa: E731
        with serve(elsewhere) as loopback:
            connection, _ = connection_to(loopback, monkeypatch)
            with pytest.raises(ServerError, match="redirects elsewhere"):
                connection.ask({})
        assert inside.asked == []


@pytest.mark.parametrize(("body", "reason"), [
    (b"<html>", "no JSON"), (b"[" * 100_000, "no JSON"), (b"\xff", "no JSON"), (b"", "no JSON"),
    (b" " * (LARGEST_ANSWER + 1), "more than 16 MiB"),
])  # fmt: skip
def test_answers_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, body: bytes, reason: str) -> None:
    with serve(lambda asked: body) as loopback:
        connection, pauses = connection_to(loopback, monkeypatch, retries=2)
        with pytest.raises(ServerError, match=reason):
            connection.ask({})
        assert pauses == []


@pytest.mark.parametrize("status", [400, 401, 403, 500])
def test_a_key_goes_to_its_server_and_nowhere_else(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    with serve(lambda asked: (status, {}, f"bad key {CANARY}, or {CANARY[:-1]}".encode())) as loopback:
        monkeypatch.setenv(KEYS_VARIABLE, f"{origin_of(loopback)}={CANARY} https://api.example=other")
        connection, _ = connection_to(loopback, monkeypatch)
        with pytest.raises(ServerError) as failure:
            connection.ask({})
        assert loopback.asked[0][1]["Authorization"] == f"Bearer {CANARY}"
    assert CANARY not in f"{failure.value!r} {failure.value.__cause__!r} {connection!r}"
    if status in (401, 403):
        assert "bad key" not in str(failure.value)


def test_what_a_server_says_is_one_short_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda asked: (500, {}, b"a\n\x1b[31mb\x00" + b"c" * 5000)) as loopback:
        connection, _ = connection_to(loopback, monkeypatch)
        with pytest.raises(ServerError) as failure:
            connection.ask({})
    assert "status 500: a [31mb c" in str(failure.value)
    assert str(failure.value).isprintable() and len(str(failure.value)) < 250
