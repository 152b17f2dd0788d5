"""A client for OpenAI's completions API: model names, next-token log-probabilities and short texts.

A server is not trusted. The key goes to the given address only: redirects and proxies are not followed. A
response has a deadline and a size limit, and is parsed by models. No error contains the key, or a password of
the URL.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from multiprocessing import TimeoutError as TimeLimit
from multiprocessing.pool import ThreadPool
from time import monotonic
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from bishare_dsl.diagnostics import BishareError, escaped, one_line
from bishare_dsl.diagnostics.codes.verify import NO_ANSWER
from bishare_dsl.reading import parse_json

TEXTS = (
    "The capital of France is a city that lies on the river",
    "Water boils at one hundred degrees, and it freezes at",
    "def add(first, second):\n    return first +",
    "Once upon a time there was a small girl who lived in",
    "Translate to German: good morning, my friends. Answer:",
    "The three primary colours are red, yellow and",
    "Question: how many legs does a spider have? Answer:",
    "Dear Sir or Madam, I am writing to you about the",
)
"""The texts, of 8 to 16 tokens each, because a prefix cache stores whole blocks of tokens."""

KEY = "BISHARE_SERVER_KEY"
"""The environment variable with the server's API key."""

IN_FLIGHT = 4
"""The number of requests that a server gets at a time."""

_MOST_BYTES = 2**24

_Parsed = TypeVar("_Parsed", bound=BaseModel)

Bar = Callable[[Iterable[str], str], Iterable[str]]
"""Yields items, and shows progress under a label."""


class Strict(BaseModel):
    """Parsed from JSON of others, without conversions."""

    model_config = ConfigDict(strict=True, frozen=True)


Answer = dict[int | str, float] | str
"""The likeliest next tokens, by id or by text, with their log-probabilities; or a greedy continuation."""

GREEDY_TOKENS = 6
"""The tokens of a greedy continuation, which servers are asked for that give no log-probabilities."""

LogProb = Annotated[float, Field(le=0, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


@dataclass(frozen=True)
class _Form:
    """A form of request: how many log-probabilities, and whether with fields that OpenAI does not have."""

    logprobs: int
    extra: bool


# Prefer token ids; servers may reject unknown fields, and at last log-probabilities.
_REQUEST_FORMS = [
    _Form(20, True),
    _Form(5, True),
    _Form(20, False),
    _Form(5, False),
    _Form(0, False),
]


class _Model(Strict):
    id: str
    parent: str | None = None


class _Models(Strict):
    data: list[_Model]


class _LogProbs(Strict):
    top_logprobs: list[dict[str, LogProb]]


class _Choice(Strict):
    index: int
    text: str = ""
    logprobs: _LogProbs | None = None


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

    def __init__(self, url: str, until: float = float("inf"), seconds: float = 120.0) -> None:
        self.url = "the given address"
        self._until = until
        self._seconds = seconds
        self._forms = list(_REQUEST_FORMS)
        try:
            parts = urlsplit(url if url.isprintable() and " " not in url else "")
            self._host = parts.hostname or ""
            self._port = parts.port
        except ValueError:
            parts = urlsplit("")
            self._host = ""
        if not self._host or parts.scheme not in ("http", "https"):
            raise self.fails("cannot be asked: give its URL as in http://localhost:8000/v1")
        self._secure = parts.scheme == "https"
        self._path = parts.path.rstrip("/")
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
        try:
            # The timeout of a socket is that of one read, and a server may send a byte at a time.
            with ThreadPool(1) as pool:
                status, content = pool.apply_async(self._send, (path, body, seconds)).get(seconds)
        except (TimeLimit, TimeoutError):
            raise self.fails(f"does not answer in {seconds:.3g} s") from None
        except (OSError, HTTPException, ValueError) as error:
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
        """Return the name of the base: the first listed model that is not an adapter.

        Args:
            mine: the names of adapters, in case the list does not mark them.

        Raises:
            ServerError: there is none (BS872).
        """
        listed = self.fetch("/models", _Models).data
        bases = [model.id for model in listed if not model.parent and model.id not in mine]
        if bases:
            return bases[0]
        raise self.fails("lists no base model", "name it: --base NAME")

    def ask(self, name: str, texts: Sequence[str], *, scored: bool = False) -> list[Answer]:
        """Return the likeliest next tokens of each text with log-probabilities, or else a continuation.

        Args:
            name: the name of the model or adapter.
            texts: the texts, sent in one request.
            scored: whether to require log-probabilities: equal continuations prove little.

        Raises:
            ServerError: the server does not respond, or with neither (BS872).
        """
        refused: ServerError | None = None
        for form in self._forms:
            if scored and not form.logprobs:
                continue
            answers: list[Answer] = []
            try:
                answers = self._ask_in(form, name, texts)
            except ServerError as error:
                refused = refused or error
                if error.status not in (400, 422):
                    break
            if len(answers) == len(texts) and any(answers):
                self._forms = [form]
                return answers
        raise refused or self.fails("gives neither log-probabilities nor texts of completions")

    def _ask_in(self, form: _Form, name: str, texts: Sequence[str]) -> list[Answer]:
        """Ask in one form of request."""
        body: dict[str, Any] = {"model": name, "temperature": 0}
        if form.extra:
            body["return_tokens_as_token_ids"] = True
            body["cache_salt"] = uuid.uuid4().hex  # It bypasses the server's prefix cache.
        if form.logprobs:
            body |= {"logprobs": form.logprobs, "max_tokens": 1, "prompt": list(texts)}
            choices = self.fetch("/completions", _Completions, body).choices
            return self._scores(self._in_order(choices, len(texts)))
        answers: list[Answer] = []
        for text in texts:  # Servers that give no log-probabilities take one text each.
            body |= {"max_tokens": GREEDY_TOKENS, "prompt": text}
            choices = self.fetch("/completions", _Completions, body).choices
            answers += [choice.text.strip() for choice in self._in_order(choices, 1)]
        return answers

    def _in_order(self, choices: Sequence[_Choice], count: int) -> list[_Choice]:
        """Return the choices in the order of their texts."""
        if sorted(choice.index for choice in choices) != [*range(count)]:
            raise self.fails(f"gives {len(choices)} answers to {count} texts, or not one for each")
        return sorted(choices, key=lambda choice: choice.index)

    def _scores(self, choices: Sequence[_Choice]) -> list[Answer]:
        """Return the log-probabilities of the likeliest tokens, or nothing if one choice lacks them."""
        answers: list[Answer] = []
        for choice in choices:
            tops = choice.logprobs.top_logprobs[:1] if choice.logprobs else []
            if not tops or not tops[0]:
                return []
            answers.append({_token(token): value for token, value in tops[0].items()})
        return answers


def _token(token: str) -> int | str:
    """Read a token id, which vLLM writes as ``token_id:5``."""
    number = token.removeprefix("token_id:")
    return int(number) if number != token and number.isdecimal() and len(number) < 10 else token


@dataclass(frozen=True)
class Asked:
    """The answers of the base and the adapter.

    Attributes:
        base: the base's answers.
        adapter: the adapter's answers.
        noise: the distance between the base's answers to the same texts; 0 if they are bit-identical.
    """

    base: list[Answer]
    adapter: list[Answer]
    noise: float


def ask(
    server: Server,
    names: Sequence[str],
    base: str | None,
    bar: Bar,
    texts: Sequence[str] = TEXTS,
) -> dict[str, Asked | ServerError]:
    """Query the base in three arrangements, and each adapter once.

    No adapter runs beside the base, which vLLM's build for the CPU then answers with the adapter.

    Args:
        server: the server.
        names: its names for the adapters.
        base: its name for the base; by default, the first listed model that is not an adapter.
        bar: yields the names, and shows progress.
        texts: the texts.
    """
    try:
        if base is None:
            base = server.base(names)
        first = server.ask(base, texts)
        if all(answer == first[0] for answer in first):
            raise server.fails("gives one answer to all texts")
        one_by_one = [server.ask(base, [text])[0] for text in texts]
        reversed_order = server.ask(base, texts[::-1])[::-1]
        with ThreadPool(IN_FLIGHT) as pool:  # Its threads do not delay the end of the program.
            answers = pool.imap(lambda name: _ask_one(server, name, texts), names)
            answered = dict(zip(bar(names, f"asking {server.url}"), answers, strict=True))
        again = server.ask(base, texts)
    except ServerError as error:
        error.status = 0  # It is about the base.
        return dict.fromkeys(names, error)
    noise = 0.0
    for other in (one_by_one, reversed_order, again):
        if other != first:
            noise = max(noise, distance(other, first))
    asked: dict[str, Asked | ServerError] = {}
    for name, answer in answered.items():
        if isinstance(answer, ServerError):
            asked[name] = answer
        else:
            asked[name] = Asked(base=first, adapter=answer, noise=noise)
    return asked


def _ask_one(server: Server, name: str, texts: Sequence[str]) -> list[Answer] | ServerError:
    try:
        return server.ask(name, texts)
    except ServerError as error:
        return error


def distance(one: Sequence[Answer], other: Sequence[Answer]) -> float:
    """Return the root mean square of the differences between the log-probabilities of two answers.

    A token in only one of them counts as the least likely token of the other, which gives a lower bound.
    Different texts count as 1.
    """
    differences: list[float] = []
    for a, b in zip(one, other, strict=True):
        if isinstance(a, str) or isinstance(b, str):
            differences.append(a != b)
            continue
        least_a = min(a.values())
        least_b = min(b.values())
        differences += [a.get(token, least_a) - b.get(token, least_b) for token in a.keys() | b]
    return rms(differences)


def rms(differences: Collection[float]) -> float:
    """Return the root mean square of numbers."""
    return math.hypot(*differences) / math.sqrt(len(differences) or 1)
