"""Qdrant's REST API over httpx: one request function, its retries, and a sentence for each of its errors.

qdrant-client is not used here, since importing it takes several times as long as a whole `query`;
a test sends every request of the store through qdrant-client's own models.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar

import httpx

from embedstore.errors import NotFoundError, StoreError, StoreUnreachableError, UsageError
from embedstore.stores.connection import Connection, Endpoint

__all__ = [
    "ConflictError",
    "ForbiddenError",
    "NoAnswerError",
    "Nodes",
    "OverloadedError",
    "RestClient",
    "UnknownKeyError",
    "persistently",
    "refusal",
    "tls_context",
]

_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_TRIES = 6
_LONGEST_WAIT = 10.0
_HALF_A_SECOND = 0.5  # the date of an answer has whole seconds, rounded down
_MENTIONED = 300  # characters of a server's own words

N = TypeVar("N")
T = TypeVar("T")


class OverloadedError(StoreUnreachableError):
    """The server may answer the same request a moment later. retry_after is in seconds, None where unsaid."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NoAnswerError(OverloadedError):
    """Nothing came back: the node is away, or what is between."""


class ConflictError(StoreError):
    """What should be created is there already."""


class ForbiddenError(StoreError):
    """The key does not allow the request."""


class UnknownKeyError(ForbiddenError):
    """The key is none of the server's, or there is none and one is asked for."""


class Nodes(Generic[N]):
    """The nodes of a cluster: any can answer any request, and the one that answered last is asked first."""

    def __init__(self, nodes: Sequence[N]) -> None:
        self._nodes = nodes
        self._now = 0

    def __iter__(self) -> Iterator[N]:
        return iter(self._nodes)

    def ask(self, send: Callable[[N], T]) -> T:
        """Return what send returns for the first node where it raises no OverloadedError.

        Where it always does, raises what a node said rather than that another one is away.
        """
        problems: list[OverloadedError] = []
        start = self._now
        for step in range(len(self._nodes)):
            self._now = now = (start + step) % len(self._nodes)
            try:
                return send(self._nodes[now])
            except OverloadedError as error:
                problems.append(error)
        raise min(problems, key=lambda error: isinstance(error, NoAnswerError))


class RestClient:
    """Requests to the first node that answers. All are safe to repeat, since they are idempotent."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        connection: Connection,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._nodes = Nodes(endpoints)
        self._patient = connection.patient
        secure = any(endpoint.secure for endpoint in endpoints)
        self._http = httpx.Client(
            auth=_KeyAuth(connection),
            timeout=_TIMEOUT,
            transport=transport,
            verify=tls_context(connection) if secure else False,
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, *, patient: bool = True) -> Any:
        return self.request("GET", path, patient=patient)

    def request(self, method: str, path: str, body: Any = None, *, patient: bool = True) -> Any:
        """Return the `result` of an answer, or the whole of it where it has none.

        Raises StoreUnreachableError where no node answers, at once unless patient; NotFoundError for 404,
        ConflictError for 409, ForbiddenError for 401 and 403, StoreError for what else the server refuses.
        """

        def send() -> Any:
            return self._nodes.ask(lambda node: self._content(self._send(node, method, path, body), node))

        return persistently(send) if patient and self._patient else send()

    def clock_skew(self) -> float | None:
        """Return how many seconds the server's clock is ahead of ours, None where it does not tell."""
        date = self._nodes.ask(lambda node: self._send(node, "GET", "/").headers.get("date"))
        if date is None:
            return None
        return parsedate_to_datetime(date).timestamp() + _HALF_A_SECOND - time.time()

    def silent_nodes(self) -> list[str]:
        """Return a sentence for each node that gives no answer now."""
        silent = []
        for node in self._nodes:
            try:
                self._content(self._send(node, "GET", "/"), node)
            except StoreError as error:
                silent.append(str(error))
        return silent

    def _send(self, node: Endpoint, method: str, path: str, body: Any = None) -> httpx.Response:
        try:
            return self._http.request(method, node.url + path, json=body)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise NoAnswerError(_why_no_answer(node, error)) from error

    def _content(self, answer: httpx.Response, node: Endpoint) -> Any:
        try:
            content = answer.json()
        except (ValueError, RecursionError):
            content = None
        if answer.is_success and isinstance(content, dict):
            return content.get("result", content)
        said = _words_of(content, answer)
        if answer.is_success or (content is None and "html" in answer.headers.get("content-type", "")):
            method = answer.request.method
            problem = (
                f"store {node.url} answered {method} with {answer.status_code}, no JSON ({said}); "
                "is a proxy before the server, or another service on that port?"
            )
            raise OverloadedError(problem) if answer.status_code >= 500 else StoreUnreachableError(problem)
        raise refusal(node.url, answer.status_code, said, _seconds(answer.headers.get("retry-after")))


class _KeyAuth(httpx.Auth):
    def __init__(self, connection: Connection) -> None:
        self._key = connection.api_key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if self._key is not None:
            request.headers["api-key"] = self._key.reveal()
        yield request


def persistently(send: Callable[[], T]) -> T:
    """Return what send returns; where the server is away or overloaded, try again after random pauses.

    Raises the last error after a minute or so, any error but OverloadedError at once.
    """
    try:
        return send()
    except OverloadedError as error:
        first = error
    from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt
    from tenacity.wait import wait_random_exponential

    backoff = wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT)

    def pause(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after if isinstance(error, OverloadedError) else None
        return backoff(state) if asked is None else min(asked, 60.0)

    time.sleep(0.1 if first.retry_after is None else min(first.retry_after, 60.0))
    retrying = Retrying(
        stop=stop_after_attempt(_TRIES),
        wait=pause,
        retry=retry_if_exception_type(OverloadedError),
        reraise=True,
    )
    return retrying(send)


def refusal(url: str, status: int, said: str, retry_after: float | None = None) -> StoreError | NotFoundError:
    """Return the exception for an answer of the server that is not a success; status as in HTTP."""
    if status == 401:
        return UnknownKeyError(
            f"store {url} refuses the key, or asks for one (401: {said}); set EMBEDSTORE_QDRANT_API_KEY or "
            "--api-key-file"
        )
    if status == 403:
        return ForbiddenError(
            f"the key for store {url} does not allow this (403: {said}); use one with more rights"
        )
    if status == 404:
        return NotFoundError(f"store {url}: {said}; list what is there with `embedstore status`")
    if status == 409:
        return ConflictError(f"store {url}: {said}")
    if "No space left" in said:
        return StoreError(f"the disk of store {url} is full ({said}); make room and run the command again")
    if status == 429 or status >= 500:
        return OverloadedError(
            f"store {url} does not answer as it should ({status}: {said}); try again", retry_after
        )
    return StoreError(f"store {url} refuses the request ({status}: {said})")


def tls_context(connection: Connection) -> ssl.SSLContext:
    """Return what verifies a server. Raises UsageError where the CA file holds no certificate."""
    try:
        return ssl.create_default_context(cafile=connection.ca_file)
    except (ssl.SSLError, OSError) as error:
        raise UsageError(
            f"CA file {connection.ca_file} cannot be used ({error}); expected PEM certificates"
        ) from error


def _why_no_answer(endpoint: Endpoint, error: Exception) -> str:
    cause = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, httpx.RemoteProtocolError):
        advice = "is this the port of its gRPC? REST is usually on 6333"
    elif "CERTIFICATE_VERIFY_FAILED" in cause:
        advice = "give its certificate authority to --ca-file"
    elif "WRONG_VERSION_NUMBER" in cause or "SSL" in cause:
        advice = "does it speak plain http on that port?"
    elif isinstance(error, httpx.TimeoutException):
        cause, advice = f"timeout, {cause}", "look at its load and network"
    elif "Name or service not known" in cause or "name resolution" in cause:
        advice = f"the name {endpoint.host!r} is unknown; correct --store"
    else:
        advice = "start the server or correct --store"
    return f"store {endpoint.url} gives no answer ({cause}); {advice}"


def _words_of(content: Any, answer: httpx.Response) -> str:
    """Return what the server says, in one line."""
    status = content.get("status") if isinstance(content, dict) else None
    said = status.get("error") if isinstance(status, dict) else None
    if not isinstance(said, str):
        said = json.dumps(content) if content is not None else answer.text
    line = " ".join(said.split())
    return line if len(line) <= _MENTIONED else line[:_MENTIONED] + "..."


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else max(0.0, float(text))
    except ValueError:
        return None
