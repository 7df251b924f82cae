"""Qdrant's REST API over httpx: one request function, its retries, and a sentence for each of its errors.

qdrant-client is not used here, since importing it takes several times as long as a whole `query`;
a test sends every request of the store through qdrant-client's own models.
"""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar, cast

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, stop_before_delay
from tenacity.wait import wait_random_exponential

from embedstore.errors import NotFoundError, StoreError, StoreUnreachableError, UsageError
from embedstore.stores.connection import Connection, Endpoint

__all__ = [
    "READING_SECONDS",
    "WRITING_SECONDS",
    "ConflictError",
    "ForbiddenError",
    "NoAnswerError",
    "Nodes",
    "OverloadedError",
    "RestClient",
    "UnknownKeyError",
    "acknowledged",
    "anything",
    "persistently",
    "refusal",
    "seconds_of",
    "tls_context",
]

# No try of a request begins later than this after the first.
READING_SECONDS = 30.0
WRITING_SECONDS = 180.0
_SHARE = 3  # a try takes at most this part of it, so that a node that hangs leaves time for two others
_CONNECT_SECONDS = 5.0
_TRIES = 8
_LONGEST_PAUSE = 10.0
_HALF_A_SECOND = 0.5  # the date of an answer has whole seconds, rounded down
_DEADLINE = "embedstore.deadline"  # of a request, among what httpx keeps with it
_MENTIONED = 300  # characters of a server's own words

# By the words of httpx, OpenSSL and the resolver.
_START_IT = "start the server or correct --store"
_ADVICE = {
    "illegal": "is it https there, or the port of its gRPC? REST is usually on 6333",
    "timed out": "look at its load and network",
    "reset by peer|disconnected|closed connection": "look at its log, and at what is in between",
    "local issuer|self-signed": "give its certificate authority to --ca-file",
    "has expired": "have its certificate renewed",
    "mismatch|not valid for": "name it as its certificate does",
    "SSL": "does it speak plain http on that port?",
    "not known|name resolution|idna|A-label": "the name is unknown; correct --store",
}

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


def anything(result: Any) -> Any:
    return result


def acknowledged(result: Any) -> Any:
    """Return the result of a write, as Qdrant gives it: a bool, or with a status."""
    return result if isinstance(result, bool) else result["status"]


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
    """Requests to the first node that answers. All are safe to repeat, since they are idempotent.

    seconds: how long a request is tried again.
    """

    seconds = READING_SECONDS

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        connection: Connection,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._nodes = Nodes(endpoints)
        self._connection = connection
        secure = any(endpoint.secure for endpoint in endpoints)
        self._http = httpx.Client(
            auth=_KeyAuth(connection),
            event_hooks={"response": [_until_its_deadline]},
            headers={"accept-encoding": "identity"},  # answers are small, compressing them takes longer
            transport=transport,
            verify=tls_context(connection) if secure else False,
            mounts={"http://": None},  # not through the proxy of HTTP_PROXY, which would read the key
        )

    def close(self) -> None:
        self._http.close()

    def get(
        self,
        path: str,
        read: Callable[[Any], T] = anything,
        *,
        patient: bool = True,
        seconds: float | None = None,
    ) -> T:
        return self.request("GET", path, read=read, patient=patient, seconds=seconds)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        read: Callable[[Any], T] = acknowledged,
        patient: bool = True,
        seconds: float | None = None,
    ) -> T:
        """Return what read makes of the `result` of an answer, or of the whole of it where it has none.

        seconds: how long it is tried again, by default those of the client.

        Raises StoreUnreachableError where no node answers, at once unless patient, and where read does not
        find what it looks for, so that the answer was not Qdrant's; NotFoundError for 404, ConflictError
        for 409, ForbiddenError for 401 and 403, StoreError for what else the server refuses.
        """

        def send() -> T:
            return self._nodes.ask(lambda node: self._read(self._send(node, method, path, body), node, read))

        if not (patient and self._connection.patient):
            return send()
        return persistently(send, self.seconds if seconds is None else seconds)

    @contextmanager
    def tried_for(self, seconds: float) -> Iterator[None]:
        """Let requests be tried for seconds while the block lasts."""
        before, self.seconds = self.seconds, seconds
        try:
            yield
        finally:
            self.seconds = before

    def clock_skew(self) -> float | None:
        """Return how many seconds the server's clock is ahead of ours, None where it does not tell."""
        date = _moment(self._nodes.ask(lambda node: self._send(node, "GET", "/")).headers.get("date"))
        return None if date is None else date + _HALF_A_SECOND - time.time()

    def silent_nodes(self) -> list[str]:
        """Return a sentence for each node that gives no answer now."""
        silent = []
        for node in self._nodes:
            try:
                self._read(self._send(node, "GET", "/"), node, anything)
            except StoreError as error:
                silent.append(str(error))
        return silent

    def _send(self, node: Endpoint, method: str, path: str, body: Any = None) -> httpx.Response:
        longest = self.seconds / _SHARE
        try:
            return self._http.request(
                method,
                node.url + path,
                json=body,
                timeout=httpx.Timeout(longest, connect=min(longest, _CONNECT_SECONDS)),
                extensions={_DEADLINE: time.monotonic() + longest},
            )
        except (httpx.RequestError, httpx.InvalidURL, UnicodeError) as error:  # the last: no host name
            problem = NoAnswerError(_why_no_answer(node, error))
        raise problem  # without the error as its context, in whose frames the key is

    def _read(self, answer: httpx.Response, node: Endpoint, read: Callable[[Any], T]) -> T:
        url, status = node.url, answer.status_code
        try:
            content = answer.json()
        except (ValueError, RecursionError):
            content = None
        if answer.is_success and isinstance(content, dict) and content.keys() & {"result", "version"}:
            with suppress(AttributeError, KeyError, TypeError, ValueError):
                return read(content.get("result", content))
        if answer.has_redirect_location:  # never followed, since the key would go along
            target = self._connection.without_key(answer.headers["location"])[:_MENTIONED]
            raise StoreError(f"store {url} redirects to {target} ({status}); give that place to --store")
        kind = answer.headers.get("content-type", "no content type")
        if answer.is_success or (content is None and "html" in kind):
            problem = (
                f"store {url} answers {answer.request.method} with {status} and {kind}, not as Qdrant does; "
                "is a proxy before the server, or another service on that port?"
            )
            raise OverloadedError(problem) if status >= 500 else StoreUnreachableError(problem)
        # Some services answer with what they were sent.
        said = self._connection.without_key(_words_of(content, answer))
        raise refusal(url, status, said, seconds_of(answer.headers.get("retry-after")))


class _KeyAuth(httpx.Auth):
    def __init__(self, connection: Connection) -> None:
        self._key = connection.api_key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if self._key is not None:
            request.headers["api-key"] = self._key.reveal()
        yield request


class _Timely(httpx.SyncByteStream):
    """A body that has to be complete at a moment of the monotonic clock, however often a part of it comes."""

    def __init__(self, stream: httpx.SyncByteStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        for part in self._stream:
            if time.monotonic() > self._deadline:
                raise httpx.ReadTimeout("timed out")
            yield part

    def close(self) -> None:
        self._stream.close()


def _until_its_deadline(answer: httpx.Response) -> None:
    stream = cast(httpx.SyncByteStream, answer.stream)
    answer.stream = _Timely(stream, answer.request.extensions[_DEADLINE])


def persistently(send: Callable[[], T], seconds: float) -> T:
    """Return what send returns; where the server is away or overloaded, ask again after growing pauses.

    They are random, so that not all clients return at once, and no shorter than the server asks for.
    Raises the last error where the next try would begin after seconds, and after the eighth; any error
    but OverloadedError at once.
    """
    backoff = wait_random_exponential(multiplier=0.5, max=_LONGEST_PAUSE)
    retrying = Retrying(
        retry=retry_if_exception_type(OverloadedError),
        wait=lambda state: backoff(state) + _asked(state),
        stop=stop_after_attempt(_TRIES) | stop_before_delay(seconds),
        reraise=True,
    )
    return retrying(send)


def _asked(state: RetryCallState) -> float:
    """Return how many seconds the server asked to wait."""
    error = state.outcome.exception() if state.outcome is not None else None
    return (error.retry_after or 0.0) if isinstance(error, OverloadedError) else 0.0


def refusal(url: str, status: int, said: str, retry_after: float | None = None) -> StoreError | NotFoundError:
    """Return the exception for an answer of the server that is not a success; status as in HTTP."""
    said = said if len(said) <= _MENTIONED else said[:_MENTIONED] + "..."
    if status == 401:
        return UnknownKeyError(
            f"store {url} refuses the key, or asks for one (401: {said}); set EMBEDSTORE_QDRANT_API_KEY or "
            "--api-key-file"
        )
    if status == 403:
        return ForbiddenError(
            f"the key for store {url} does not allow this (403: {said}); use a valid one with more rights"
        )
    if status == 404:
        return NotFoundError(f"store {url}: {said}; list what is there with `embedstore status`")
    if status == 409:
        return ConflictError(f"store {url}: {said}")
    if "No space left" in said:
        return StoreError(f"the disk of store {url} is full ({said}); make room and run the command again")
    if status == 429 or status >= 500:
        again = "try again" if not retry_after else f"try again in {retry_after:.0f} s, as it asks"
        return OverloadedError(
            f"store {url} is overloaded or failing ({status}: {said}); {again}", retry_after
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
    advice = next((text for words, text in _ADVICE.items() if re.search(words, cause)), _START_IT)
    return f"store {endpoint.url} gives no answer ({cause}); {advice}"


def _words_of(content: Any, answer: httpx.Response) -> str:
    """Return what the server says, in one line."""
    status = content.get("status") if isinstance(content, dict) else None
    said = status.get("error") if isinstance(status, dict) else None
    if not isinstance(said, str):
        said = json.dumps(content) if content is not None else answer.text
    return " ".join(said.split())


def seconds_of(retry_after: str | None) -> float | None:
    """Return how long a server asks to wait; it says so in seconds, or as a date."""
    try:
        return None if retry_after is None else max(0.0, float(retry_after))
    except ValueError:
        date = _moment(retry_after)
        return None if date is None else max(0.0, date - time.time())


def _moment(date: str | None) -> float | None:
    """Return a date of HTTP in seconds since 1970, None where it is none."""
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
