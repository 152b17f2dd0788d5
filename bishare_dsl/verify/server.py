"""A client for OpenAI's completions API: model names and next-token log-probabilities.

A server is not trusted. The key goes to the given address only: redirects and proxies are not followed. A
response has a deadline and a size limit, and is parsed by models. No error contains the key, or a password of
the URL.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Thread
from time import monotonic
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from bishare_dsl.diagnostics import BishareError, escaped, one_line
from bishare_dsl.diagnostics.codes.verify import NO_ANSWER
from bishare_dsl.reading import parse_json

KEY = "BISHARE_SERVER_KEY"
"""The environment variable with the server's API key."""

REQUEST_SECONDS = 120.0
"""The default time for a request."""

_MOST_BYTES = 2**24
_FAILURES = (OSError, HTTPException, ValueError)


_Parsed = TypeVar("_Parsed", bound=BaseModel)


class Strict(BaseModel):
    """Parsed from JSON of others, without conversions."""

    model_config = ConfigDict(strict=True, frozen=True)


Answer = dict[int | str, float]
"""The likeliest tokens, by id or by text, with their log-probabilities."""

LogProb = Annotated[float, Field(le=0, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]

# Prefer token ids; servers may reject unknown fields.
_REQUEST_FORMS = [(logprobs, extra) for extra in (True, False) for logprobs in (20, 5)]


class _Model(Strict):
    id: str
    parent: str | None = None


class _Models(Strict):
    data: list[_Model]


class _LogProbs(Strict):
    top_logprobs: list[dict[str, LogProb]]


class _Choice(Strict):
    index: int
    logprobs: _LogProbs


class _Completions(Strict):
    choices: list[_Choice]


class ServerError(BishareError):
    """A server does not provide the required answers.

    Attributes:
        status: the status of its response; 0 if there is none.
    """

    status = 0


class Server:
    """A server with named models.

    Args:
        url: of its API, such as ``http://localhost:8000/v1``. The attribute is without secrets.
        until: when the whole run must end, by `time.monotonic`.
        seconds: the time for a request, from connecting to the end of the response.

    Raises:
        ServerError: the URL or the key cannot be used (BS872).
    """

    def __init__(
        self, url: str, until: float = float("inf"), seconds: float = REQUEST_SECONDS
    ) -> None:
        self.url, self._until, self._seconds = "the given address", until, seconds
        self._forms = list(_REQUEST_FORMS)
        try:
            parts = urlsplit(url if url.isprintable() and " " not in url else "")
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            parts, self._host = urlsplit(""), ""
        if not self._host or parts.scheme not in ("http", "https"):
            raise self.fails("cannot be asked: give its URL as in http://localhost:8000/v1")
        self._secure, self._path = parts.scheme == "https", parts.path.rstrip("/")
        place = parts.netloc.rpartition("@")[2]
        self.url = f"{parts.scheme}://{place}{self._path}"
        if place != parts.netloc or parts.query:
            help = f"put its key into the environment variable {KEY}"
            raise self.fails("cannot be asked: its URL has a password or a query", help)
        self._key = os.environ.get(KEY, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise self.fails(f"cannot be asked: {KEY} has characters that no header can have")

    def fails(self, reason: str, help: str | None = None, status: int = 0) -> ServerError:
        """Build an error about what the server does or does not do (BS872)."""
        error = ServerError(NO_ANSWER(url=self.url, reason=reason, help=help))
        error.status = status
        return error

    def fetch(self, path: str, kind: type[_Parsed], body: Any = None) -> _Parsed:
        """Send a request, and parse the JSON of its response.

        Args:
            path: the path below the URL.
            kind: the model of the JSON.
            body: the JSON to post; None for GET.

        Raises:
            ServerError: the server does not respond as it should (BS872).
        """
        status, text = self.call(path, body)
        if status == 200:
            try:
                return kind.model_validate(parse_json(text))
            except ValueError as error:
                raise self.fails(f"gives no {path[1:]}: {self.quote(one_line(error))}") from None
        key = f"put the server's key into the environment variable {KEY}"
        help = {401: key, 403: key}.get(status)
        if status == 404 and not self.url.endswith("/v1"):
            help = f"the URL may lack its end: {self.url}/v1"
        raise self.fails(f"answers {status} to {path}: {self.quote(text)}", help, status)

    def call(self, path: str, body: Any = None) -> tuple[int, str]:
        """Send a request, and return the status and text of the response; see `fetch`.

        Raises:
            ServerError: the server does not respond in time, or by a redirect (BS872).
        """
        seconds = min(self._seconds, self._until - monotonic())
        if seconds <= 0:
            raise self.fails("is not asked: the time for the whole run is up")
        answer: Future[tuple[int, bytes]] = Future()

        def send() -> None:
            try:
                answer.set_result(self._send(path, body, seconds))
            except _FAILURES as error:
                answer.set_exception(error)

        # The timeout of a socket is that of one read, and a server may send a byte at a time.
        Thread(target=send, daemon=True).start()
        try:
            status, content = answer.result(seconds)
        except TimeoutError:
            raise self.fails(f"does not answer in {seconds:.3g} s") from None
        except _FAILURES as error:
            raise self.fails(f"does not answer: {self.quote(one_line(error))}") from None
        if len(content) > _MOST_BYTES:
            raise self.fails(f"answers with more than {_MOST_BYTES:,} bytes")
        if 300 <= status < 400:
            help = "give the URL of the server itself; no other address gets the key"
            raise self.fails(f"redirects to another address ({status})", help)
        return status, content.decode("utf-8", "replace")

    def _send(self, path: str, body: Any, seconds: float) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        kind = HTTPSConnection if self._secure else HTTPConnection
        with closing(kind(self._host, self._port, timeout=seconds)) as connection:
            method, sent = ("GET", None) if body is None else ("POST", json.dumps(body))
            connection.request(method, self._path + path, sent, headers)
            response = connection.getresponse()
            return response.status, response.read(_MOST_BYTES + 1)

    def quote(self, text: str) -> str:
        """Return the start of a text of the server on one line, printable and without the key."""
        text = text.replace(self._key, "[key]") if self._key else text
        return escaped(" ".join(text.split())[:300])

    def base(self, mine: Collection[str]) -> str:
        """Return the name of the base: the first listed model that is no adapter.

        Args:
            mine: the names of adapters, in case the list does not mark them.

        Raises:
            ServerError: there is none (BS872).
        """
        listed = self.fetch("/models", _Models).data
        if found := [model.id for model in listed if not model.parent and model.id not in mine]:
            return found[0]
        raise self.fails("lists no base model", "name it: --base NAME")

    def ask(self, name: str, texts: Sequence[str], *, salt: bool = True) -> list[Answer]:
        """Return the likeliest next tokens of each text, with log-probabilities.

        Args:
            name: the name of the model or adapter.
            texts: the texts, sent in one request.
            salt: whether to bypass the server's prefix cache.

        Raises:
            ServerError: the server does not respond, or omits log-probabilities (BS872).
        """
        refused: ServerError | None = None
        for form in list(self._forms):
            logprobs, extra = form
            body: dict[str, Any] = {"model": name, "prompt": list(texts), "max_tokens": 1}
            body |= {"temperature": 0, "logprobs": logprobs}
            if extra:
                body |= {"return_tokens_as_token_ids": True}
                body |= {"cache_salt": uuid.uuid4().hex} if salt else {}
            try:
                choices = self.fetch("/completions", _Completions, body).choices
            except ServerError as error:
                refused = refused or error
                if error.status not in (400, 422):
                    break
            else:
                self._forms = [form]
                return self._answers(choices, len(texts))
        raise refused or self.fails("was not asked")

    def _answers(self, choices: Sequence[_Choice], count: int) -> list[Answer]:
        tops = {choice.index: choice.logprobs.top_logprobs[:1] for choice in choices}
        answers = {i: {_token(t): x for top in tops[i] for t, x in top.items()} for i in tops}
        if sorted(answers) != [*range(count)] or len(choices) != count:
            raise self.fails(f"gives {len(choices)} answers to {count} texts, or not one for each")
        if not all(answers.values()):
            raise self.fails("gives no log-probabilities of completions")
        return [answers[i] for i in range(count)]


def _token(token: str) -> int | str:
    """Read a token id, which vLLM writes as ``token_id:5``."""
    number = token.removeprefix("token_id:")
    return int(number) if number != token and number.isdecimal() and len(number) < 10 else token
