"""REST against a scripted server: what is asked again, after which pause, and what fails at once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from email.utils import formatdate

import pytest

from embedstore.errors import NotFoundError, StoreError, StoreUnreachableError
from embedstore.stores import rest
from embedstore.stores.connection import Connection, Secret, endpoints_of
from embedstore.stores.rest import (
    READING_SECONDS,
    ConflictError,
    ForbiddenError,
    NoAnswerError,
    OverloadedError,
    RestClient,
    UnknownKeyError,
    anything,
    seconds_of,
)
from embedstore.stores.server import ServerStore
from tests.keys import KEY
from tests.scripted import (
    HTML,
    QDRANT,
    Act,
    GrpcServer,
    HttpServer,
    answer,
    drip,
    everything_about,
    half_a_body,
    reset,
    stall,
)

OK = answer(content={"result": 7})
NO_ROOM = {"status": {"error": "Service internal error: No space left on device (os error 28)"}}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for; none is made, and a stall is one of 0.2 s."""
    made: list[float] = []
    monkeypatch.setattr(time, "sleep", made.append)
    monkeypatch.setattr(rest, "_SHARE", READING_SECONDS / 0.2)
    return made


@contextmanager
def client(*urls: str) -> Iterator[RestClient]:
    connection = Connection(api_key=Secret(KEY), insecure=True)
    with closing(RestClient(endpoints_of(",".join(urls), connection), connection)) as opened:
        yield opened


def ask(script: Sequence[Act]) -> tuple[object, int]:
    """Return the answer to one request, and the number of requests that it took."""
    with HttpServer(*script) as server, client(server.url) as asked:
        return asked.get("/x", anything), len(server.requests)


AT_ONCE: list[tuple[str, Act, type[StoreError | NotFoundError], str]] = [
    (
        "wrong key",
        answer(401, "Invalid API key", content_type="text/plain"),
        UnknownKeyError,
        "refuses the key",
    ),
    (
        "no right",
        answer(403, {"status": {"error": "Forbidden"}}),
        ForbiddenError,
        "does not allow this (403: Forb",
    ),
    ("not there", answer(404, {"status": {"error": "Not found: x"}}), NotFoundError, "Not found: x"),
    ("there already", answer(409, {"status": {"error": "exists!"}}), ConflictError, "exists!"),
    ("bad request", answer(400, {"status": {"error": "no"}}), StoreError, "refuses the request (400: no)"),
    ("no entity", answer(422, {"status": {"error": "no"}}), StoreError, "refuses the request (422: no)"),
    ("disk full", answer(500, NO_ROOM), StoreError, "is full (Service internal error"),
    (
        "moved",
        answer(307, "", location="http://elsewhere/x"),
        StoreError,
        "redirects to http://elsewhere/x (307)",
    ),
    (
        "a page",
        answer(200, HTML, content_type="text/html"),
        StoreUnreachableError,
        "answers GET with 200 and text/h",
    ),
    (
        "a page of 404",
        answer(404, HTML, content_type="text/html"),
        StoreUnreachableError,
        "is a proxy before",
    ),
    ("no JSON", answer(200, '{"result": '), StoreUnreachableError, "not as Qdrant does"),
    ("other JSON", answer(200, {"hello": "world"}), StoreUnreachableError, "not as Qdrant does"),
    ("a list", answer(200, []), StoreUnreachableError, "not as Qdrant does"),
    ("not even text", answer(200, b"\xff\xfe\0"), StoreUnreachableError, "not as Qdrant does"),
    ("deep JSON", answer(200, "[" * 100_000), StoreUnreachableError, "not as Qdrant does"),
    ("come next week", answer(429, "", retry_after="604800"), OverloadedError, "try again in 604800 s"),
]
AGAIN: list[tuple[str, Act]] = [
    ("overloaded", answer(429, {"status": {"error": "Rate limiting exceeded"}}, retry_after="3")),
    ("internal error", answer(500, {"status": {"error": "panicked"}})),
    ("a gateway's page", answer(502, HTML, content_type="text/html")),
    ("unavailable", answer(503, "")),
    ("gateway timeout", answer(504, "")),
    ("reset", reset),
    ("half a body", half_a_body),
    ("a stall", stall),
    ("a body by drips", drip),
    ("broken gzip", answer(200, "{}", content_encoding="gzip")),
]


@pytest.mark.parametrize(
    ("act", "error", "sentence"), [case[1:] for case in AT_ONCE], ids=[c[0] for c in AT_ONCE]
)
def test_what_will_not_get_better_fails_at_once(
    act: Act, error: type[Exception], sentence: str, pauses: list[float]
) -> None:
    with HttpServer(act, OK) as server, client(server.url) as asked:
        with pytest.raises(error) as caught:
            asked.get("/x", anything)
        assert len(server.requests) == 1
    assert type(caught.value) is error
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert pauses == []


WRITTEN = [answer(content={"result": result}) for result in (True, False, {"status": "acknowledged"})]


@pytest.mark.parametrize("act", WRITTEN)
def test_what_qdrant_says_to_a_write(act: Act, pauses: list[float]) -> None:
    with HttpServer(act) as server, client(server.url) as asked:
        asked.request("PUT", "/x", {})


@pytest.mark.parametrize("result", [None, 7, [], {"hello": ["world"]}, "ok"], ids=str)
def test_an_answer_to_another_question_is_none(result: object, pauses: list[float]) -> None:
    with (
        HttpServer(answer(content={"result": result, "status": "ok"})) as server,
        client(server.url) as asked,
    ):
        with pytest.raises(StoreUnreachableError, match=r"answers PUT with 200 and .*, not as Qdrant does"):
            asked.request("PUT", "/x", {})
        with pytest.raises(StoreUnreachableError, match=r"answers GET with 200 and .*, not as Qdrant does"):
            asked.get("/x", lambda found: found["aliases"])
        assert len(server.requests) == 2


@pytest.mark.parametrize("act", [case[1] for case in AGAIN], ids=[case[0] for case in AGAIN])
def test_what_may_get_better_is_asked_again(act: Act, pauses: list[float]) -> None:
    assert ask([act, act, OK]) == (7, 3)
    assert len(pauses) == 2
    assert min(pauses) > 0


@pytest.mark.parametrize("act", [case[1] for case in AGAIN], ids=[case[0] for case in AGAIN])
def test_but_not_for_ever_and_not_by_who_is_in_a_hurry(
    act: Act, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "_TRIES", 3)
    with HttpServer(act) as server, client(server.url) as asked:
        with pytest.raises(OverloadedError) as caught:
            asked.get("/x", anything)
        assert (len(server.requests), len(pauses)) == (3, 2)
        with pytest.raises(OverloadedError):
            asked.get("/x", anything, patient=False)
        assert (len(server.requests), len(pauses)) == (4, 2)
    assert isinstance(caught.value, StoreUnreachableError)
    assert "\n" not in str(caught.value)
    assert KEY not in everything_about(caught.value)


def test_no_try_begins_after_the_time_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with HttpServer(stall) as server, client(server.url) as asked:
        asked.seconds = 0.6
        started = time.monotonic()
        with pytest.raises(NoAnswerError, match="timed out"):
            asked.get("/x", anything)
        assert 0.2 <= time.monotonic() - started < 0.6 + 0.2 + 0.5
        assert len(server.requests) <= 3


def test_who_is_to_wait_longer_than_that_is_told_at_once(pauses: list[float]) -> None:
    with pytest.raises(OverloadedError, match="try again in 31 s, as it asks"):
        ask([answer(429, "", retry_after="31"), OK])
    assert pauses == []


def test_pauses_grow_and_are_random(pauses: list[float]) -> None:
    for _ in range(2):
        with pytest.raises(OverloadedError):
            ask([answer(503, "")])
    first, second = pauses[:7], pauses[7:]
    for pause, longest in zip(first, [0.5, 1, 2, 4, 8, 10, 10], strict=True):
        assert 0 <= pause <= longest
    assert first != second


def test_a_pause_is_at_least_what_the_server_asks_for(pauses: list[float]) -> None:
    in_20_seconds = formatdate(time.time() + 20, usegmt=True)
    script = [answer(429, "", retry_after=asked) for asked in ("3", "2.5", in_20_seconds)]
    assert ask([*script, OK]) == (7, 4)
    assert pauses[0] > 3
    assert pauses[1] > 2.5
    assert pauses[2] > 15


def test_retry_after_that_says_nothing(pauses: list[float]) -> None:
    assert [seconds_of(text) for text in (None, "soon", "-5", "nan")] == [None, None, 0, 0]
    assert ask([answer(429, "", retry_after="soon"), OK]) == (7, 2)


def test_a_redirect_is_not_followed_with_the_key(pauses: list[float]) -> None:
    with HttpServer(OK) as thief:
        with HttpServer(answer(301, "", location=thief.url)) as server, client(server.url) as asked:
            with pytest.raises(StoreError, match=f"redirects to {thief.url}"):
                asked.get("/x", anything)
            assert server.requests[0].headers["api-key"] == KEY
        assert thief.requests == []


def test_a_key_over_plain_http_does_not_pass_the_proxy_of_the_environment(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with HttpServer(OK) as proxy, HttpServer(OK) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        with client(server.url) as asked:
            assert asked.get("/x", anything) == 7
        assert proxy.requests == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 500])
def test_an_answer_that_holds_the_key_is_told_without_it(
    status: int, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "_MENTIONED", 12)  # cut off within the key
    with pytest.raises((StoreError, NotFoundError)) as caught:
        ask([answer(status, f"api-key: {KEY}")])
    assert KEY[:4] not in str(caught.value)
    assert KEY not in everything_about(caught.value)


def test_the_next_node_answers_without_a_pause(pauses: list[float]) -> None:
    with HttpServer(OK) as server, client("http://127.0.0.1:9", server.url) as asked:
        assert asked.get("/x", anything) == 7
    assert pauses == []


def test_a_node_that_answers_is_quoted_rather_than_one_that_is_away(pauses: list[float]) -> None:
    with (
        HttpServer(answer(500, "no quorum")) as server,
        client("http://127.0.0.1:9", server.url, "http://127.0.0.1:9") as asked,
        pytest.raises(StoreUnreachableError, match=r"500: .*no quorum"),
    ):
        asked.get("/x", anything, patient=False)


def test_an_overloaded_node_is_passed_by(pauses: list[float]) -> None:
    with (
        HttpServer(answer(503, "busy")) as busy,
        HttpServer(OK) as server,
        client(busy.url, server.url) as asked,
    ):
        assert asked.get("/x", anything) == 7
    assert pauses == []


def test_a_dead_server_and_an_unknown_name_are_told_apart(pauses: list[float]) -> None:
    for url, advice in [
        ("http://127.0.0.1:9", "start the server or correct --store"),
        ("http://nowhere.invalid", "the name is unknown"),
        (f"http://{'a' * 64}.invalid", "the name is unknown"),
    ]:
        with client(url) as asked, pytest.raises(StoreUnreachableError, match=advice):
            asked.get("/x", anything, patient=False)


def test_the_port_of_grpc_is_recognised(pauses: list[float]) -> None:
    with (
        GrpcServer() as server,
        client(f"http://127.0.0.1:{server.port}") as asked,
        pytest.raises(StoreUnreachableError, match="the port of its gRPC"),
    ):
        asked.get("/x", anything, patient=False)


def test_plain_http_where_tls_was_expected(pauses: list[float]) -> None:
    with (
        HttpServer(OK) as server,
        client(server.url.replace("http:", "https:")) as asked,
        pytest.raises(StoreUnreachableError, match="does it speak plain http"),
    ):
        asked.get("/x", anything, patient=False)


def test_the_clock_of_the_server(pauses: list[float]) -> None:
    dates = (formatdate(time.time() + 3600, usegmt=True), "yesterday", "")
    script = [answer(content={"version": "1"}, date=date) for date in dates]
    with HttpServer(*script) as server, client(server.url) as asked:
        assert asked.clock_skew() == pytest.approx(3600, abs=60)
        assert asked.clock_skew() is None
        assert asked.clock_skew() is None


def test_a_server_that_is_too_old_or_none(pauses: list[float]) -> None:
    for content, error, sentence in [
        ({"title": "qdrant", "version": "1.9.0"}, StoreError, "is Qdrant 1.9.0, expected 1.17.1 or newer"),
        ({"result": {"version": "dev"}}, StoreUnreachableError, "not as Qdrant"),
        ({"result": []}, StoreUnreachableError, "not as Qdrant"),
        ({"version": None}, StoreUnreachableError, "not as Qdrant"),
    ]:
        with HttpServer(answer(content=content)) as server, pytest.raises(error, match=sentence):
            ServerStore(server.url)


def test_a_store_asks_no_more_after_its_server_was_recognised(pauses: list[float]) -> None:
    with HttpServer(QDRANT) as server, ServerStore(server.url) as store:
        assert store.version == "1.18.3"
        assert [(request.method, request.path) for request in server.requests] == [("GET", "/")]
