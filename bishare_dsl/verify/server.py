"""A client for OpenAI's completions API: model names and next-token log-probabilities.

A server is not trusted. The key goes to the given address only: redirects and proxies are not followed. A
response has a deadline and a size limit, and is parsed by models. No text of an error contains the key.
"""

from __future__ import annotations

import json
import os
import ssl
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import PurePath
from socket import SHUT_RDWR
from threading import Timer
from time import monotonic
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bishare_dsl.diagnostics import BishareError, nearest, one_line
from bishare_dsl.diagnostics.codes import verify as codes
from bishare_dsl.reading import parse_json
from bishare_dsl.verify.answers import Answer

KEY = "BISHARE_SERVER_KEY"
"""The environment variable with the server's API key."""

REQUEST_SECONDS = 120.0
"""The time for a request, from connecting to the end of the response."""

_MOST_BYTES = 2**24
_REFUSED_STATUS = (400, 422)
# Prefer token ids; servers may reject unknown fields.
_REQUEST_FORMS = [(logprobs, extra) for extra in (True, False) for logprobs in (20, 5)]

_LogProb = Annotated[float, Field(le=0, allow_inf_nan=False)]
_Id = Annotated[int, Field(ge=0, lt=2**31)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Model(_Strict):
    id: str
    parent: str | None = None
    owned_by: str | None = None


class _Models(_Strict):
    data: list[_Model]


class _Lora(_Strict):
    """An adapter of a llama.cpp server."""

    id: _Id
    path: str


class _Loras(_Strict):
    loras: list[_Lora]


class _Token(_Strict):
    token: str = ""
    id: _Id | None = None
    logprob: _LogProb


class _Position(_Strict):
    top_logprobs: Annotated[list[_Token], Field(min_length=1)]


class _LogProbs(_Strict):
    """The log-probabilities of a completion, in OpenAI's or llama.cpp's format."""

    top_logprobs: list[dict[str, _LogProb]] | None = None
    content: list[_Position] | None = None

    def first(self) -> Answer:
        """Return the likeliest first tokens."""
        if self.top_logprobs:
            return {_token(token): value for token, value in self.top_logprobs[0].items()}
        top = self.content[0].top_logprobs if self.content else ()
        return {one.token if one.id is None else one.id: one.logprob for one in top}


class _Choice(_Strict):
    index: int
    logprobs: _LogProbs


class _Completions(_Strict):
    choices: list[_Choice]


_Parsed = TypeVar("_Parsed", bound=_Strict)


class VerifyError(BishareError):
    """A server does not provide the required answers.

    Attributes:
        status: the status of its response; 0 if there is none.
    """

    status = 0


class Server:
    """A server with named models.

    Args:
        url: the URL of its API, such as ``http://localhost:8000/v1``.
        until: when the whole run must end, by `time.monotonic`.

    Raises:
        VerifyError: the URL or the key cannot be used (BS872).
    """

    def __init__(self, url: str, until: float = float("inf")) -> None:
        self.url, self._until = "", until
        self._forms = list(_REQUEST_FORMS)
        self._loras: Mapping[str, int] | None = None
        self._open: set[HTTPConnection] = set()
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            parts, host, port = urlsplit(""), "", None
        at = f"[{host}]" if ":" in host else host
        # Without the name, password and query, which may be secrets.
        self.url = f"{parts.scheme}://{at}{'' if port is None else f':{port}'}{parts.path}"
        self.url = self.url.rstrip("/")
        self._path = parts.path.rstrip("/")
        if not host or parts.scheme not in ("http", "https") or not url.isprintable() or " " in url:
            self.url = self.url if host else "the given address"
            raise self.fails("cannot be asked: give its URL as in http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            help = f"put its key into the environment variable {KEY}"
            raise self.fails("cannot be asked: its URL has a password or a query", help)
        self._address = host, port, parts.scheme == "https"
        self._key = os.environ.get(KEY, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise self.fails(f"cannot be asked: {KEY} has characters that no header can have")

    def fails(self, reason: str, help: str | None = None, status: int = 0) -> VerifyError:
        """Build an error about what the server does or does not do (BS872)."""
        error = VerifyError(codes.NO_ANSWER(url=self.url, reason=reason, help=help))
        error.status = status
        return error

    def call(self, path: str, body: Any = None, root: bool = False) -> tuple[int, str]:
        """Send a request, and return the status and text of the response.

        Args:
            path: the path below the URL, or below its ``root``.
            body: the JSON to post; None for GET.

        Raises:
            VerifyError: the server does not respond in time, or by a redirect (BS872).
        """
        seconds = min(REQUEST_SECONDS, self._until - monotonic())
        if seconds <= 0:
            raise self.fails("is not asked: the time for the whole run is up")
        host, port, secure = self._address
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        if secure:
            context = ssl.create_default_context()
            connection: HTTPConnection = HTTPSConnection(
                host, port, timeout=seconds, context=context
            )
        else:
            connection = HTTPConnection(host, port, timeout=seconds)
        # A socket's timeout is for one read, and a server may send a byte at a time.
        timer = Timer(seconds, _close, [connection])
        timer.daemon = True
        timer.start()
        self._open.add(connection)
        at = (self._path.removesuffix("/v1") if root else self._path) + path
        try:
            connection.request("GET" if body is None else "POST", at, json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read(_MOST_BYTES + 1)
        except (OSError, HTTPException, ValueError, AttributeError) as error:
            late = not timer.is_alive()
            reason = f"in {seconds:.0f} s" if late else f": {self._quoted(one_line(error))}"
            raise self.fails(f"does not answer{' ' * late}{reason}") from None
        finally:
            timer.cancel()
            self._open.discard(connection)
            connection.close()
        if len(content) > _MOST_BYTES:
            raise self.fails(f"answers with more than {_MOST_BYTES:,} bytes")
        if 300 <= response.status < 400:
            help = "give the URL of the server itself; no other address gets the key"
            raise self.fails(f"redirects to another address ({response.status})", help)
        return response.status, content.decode("utf-8", "replace")

    def stop(self) -> None:
        """End the requests of other threads, and send no more."""
        self._until = 0
        for connection in [*self._open]:
            _close(connection)

    def _quoted(self, text: str) -> str:
        """Return the start of a text of the server on one line, without the key."""
        text = text.replace(self._key, "[key]") if self._key else text
        return " ".join(text.split())[:300]

    def _parse(self, text: str, kind: type[_Parsed], what: str) -> _Parsed:
        try:
            parsed = parse_json(text)
            return kind.model_validate({"loras": parsed} if kind is _Loras else parsed)
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(map(str, first["loc"]))
            reason = f"`{at}`: {first['msg'].lower()}"
        except ValueError as error:
            reason = one_line(error)
        raise self.fails(f"gives no {what}: {self._quoted(reason)}")

    def base(self, mine: Collection[str]) -> str:
        """Return the name of the base: the first listed model that is no adapter.

        Args:
            mine: the names of adapters, in case the list does not mark them.

        Raises:
            VerifyError: there is none (BS872).
        """
        status, text = self.call("/models")
        if status != 200:
            raise self._refuses(status, f"answers {status} to /models: {self._quoted(text)}")
        listed = self._parse(text, _Models, "list of models").data
        if any(model.owned_by == "llamacpp" for model in listed):
            # A llama.cpp server applies its adapters to every request.
            status, text = self.call("/lora-adapters", root=True)
            loras = self._parse(text, _Loras, "list of adapters").loras if status == 200 else []
            self._loras = {PurePath(lora.path).stem: lora.id for lora in loras}
            return ""
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
            VerifyError: the server does not respond, or omits log-probabilities (BS872).
        """
        if self._loras is not None and name and name not in self._loras:
            help = nearest(name, self._loras) or "start it with --lora"
            raise self.fails(f"has no adapter '{name}'", help, 404)
        status, reason = 0, ""
        for form in list(self._forms):
            logprobs, extra = form
            body: dict[str, Any] = {"model": name, "prompt": list(texts), "max_tokens": 1}
            body |= {"temperature": 0, "logprobs": logprobs}
            if extra:
                body |= {"return_tokens_as_token_ids": True}
                body |= {"cache_salt": uuid.uuid4().hex} if salt else {}
            if self._loras is not None:
                scales = [{"id": i, "scale": float(n == name)} for n, i in self._loras.items()]
                body |= {"lora": scales, "cache_prompt": not salt}
            status, text = self.call("/completions", body)
            if status == 200:
                self._forms = [form]
                return self._answers(text, len(texts))
            reason = reason or f"answers {status} to '{name}': {self._quoted(text)}"
            if status not in _REFUSED_STATUS:
                break
        raise self._refuses(status, reason)

    def _refuses(self, status: int, reason: str) -> VerifyError:
        help = None
        if status in (401, 403):
            help = f"put the server's key into the environment variable {KEY}"
        elif status == 404 and not self.url.endswith("/v1"):
            help = f"the URL may lack its end: {self.url}/v1"
        return self.fails(reason, help, status)

    def _answers(self, text: str, count: int) -> list[Answer]:
        what = "log-probabilities of completions"
        choices = self._parse(text, _Completions, what).choices
        answers = {choice.index: choice.logprobs.first() for choice in choices}
        if sorted(answers) != [*range(count)] or len(choices) != count:
            raise self.fails(f"gives {len(choices)} answers to {count} texts, or not one for each")
        if not all(answers.values()):
            raise self.fails(f"gives no {what}")
        return [answers[i] for i in range(count)]


def _close(connection: HTTPConnection) -> None:
    """End a request that another thread waits for."""
    with suppress(OSError, AttributeError):  # It may not be open.
        connection.sock.shutdown(SHUT_RDWR)


def _token(token: str) -> int | str:
    """Read a token id, which vLLM writes as ``token_id:5``."""
    number = token.removeprefix("token_id:")
    return int(number) if number != token and number.isdecimal() and len(number) < 10 else token
