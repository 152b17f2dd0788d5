"""A client for OpenAI's completions API: model names and next-token log-probabilities."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from bishare_dsl.diagnostics import BishareError, nearest, one_line
from bishare_dsl.diagnostics.codes import verify as codes
from bishare_dsl.verify.answers import Answer

KEY = "BISHARE_SERVER_KEY"
"""The environment variable with the server's API key."""

_TIMEOUT_SECONDS = 600
_MOST_BYTES = 2**26
_REFUSED_STATUS = (400, 422)
# Prefer token ids; servers may reject unknown fields.
_REQUEST_FORMS = [(logprobs, extra) for extra in (True, False) for logprobs in (20, 5)]


class VerifyError(BishareError):
    """A server does not provide the required answers."""


class Server:
    """A server with named models.

    Args:
        url: the URL of its API, such as ``http://localhost:8000/v1``.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise self.fails("cannot be asked: the URL does not begin with http:// or https://")
        local = urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")
        self._opener = build_opener(*([ProxyHandler({})] if local else []))
        self._forms = list(_REQUEST_FORMS)
        self._loras: list[str] | None = None

    def fails(self, reason: str, help: str | None = None) -> VerifyError:
        """Build an error about what the server does or does not do (BS872)."""
        return VerifyError(codes.NO_ANSWER(url=self.url, reason=reason, help=help))

    def call(self, path: str, body: Any = None, root: bool = False) -> tuple[int, str]:
        """Send a request, and return the status and text of the response.

        Args:
            path: the path below the URL, or below its ``root``.
            body: the JSON to post; None for GET.

        Raises:
            VerifyError: the server does not respond (BS872).
        """
        address = (self.url.removesuffix("/v1") if root else self.url) + path
        request = Request(address, None if body is None else json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        if key := os.environ.get(KEY):
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
                return answer.status, answer.read(_MOST_BYTES).decode("utf-8", "replace")
        except HTTPError as error:
            return error.code, error.read(_MOST_BYTES).decode("utf-8", "replace")
        except (OSError, ValueError) as error:
            raise self.fails(f"does not answer: {one_line(error)}") from error

    def base(self, name: str) -> str:
        """Return the name of the base: the first listed model other than ``name``.

        Raises:
            VerifyError: there is none (BS872).
        """
        status, text = self.call("/models")
        if status != 200:
            raise self._refuses(status, f"answers {status} to /models: {shortened(text)}")
        try:
            listed = json.loads(text)["data"]
            names = [str(model["id"]) for model in listed if not model.get("parent")]
        except (ValueError, KeyError, TypeError, AttributeError):
            listed, names = [], []
        if any(model.get("owned_by") == "llamacpp" for model in listed):
            self._find_loras(name)
            return ""
        if found := [model for model in names if model != name]:
            return found[0]
        raise self.fails(f"lists no base model besides '{name}'", "name it: --base NAME")

    def _find_loras(self, name: str) -> None:
        """Read the adapters of a llama.cpp server, which applies them to every request."""
        status, text = self.call("/lora-adapters", root=True)
        loras = json.loads(text) if status == 200 else []
        self._loras = [Path(lora["path"]).stem for lora in loras]
        if name not in self._loras:
            help = nearest(name, self._loras)
            raise self.fails(f"has no adapter '{name}'", help or "start it with --lora")

    def ask(self, name: str, texts: Sequence[str], *, salt: bool = True) -> list[Answer]:
        """Return the likeliest next tokens of each text, with log-probabilities.

        Args:
            name: the name of the model or adapter.
            texts: the texts, sent in one request.
            salt: whether to bypass the server's prefix cache.

        Raises:
            VerifyError: the server does not respond, or omits log-probabilities (BS872).
        """
        status, reason = 0, ""
        for form in list(self._forms):
            logprobs, extra = form
            body: dict[str, Any] = {"model": name, "prompt": list(texts), "max_tokens": 1}
            body |= {"temperature": 0, "logprobs": logprobs}
            if extra:
                body |= {"return_tokens_as_token_ids": True}
                body |= {"cache_salt": uuid.uuid4().hex} if salt else {}
            if self._loras is not None:
                scales = [
                    {"id": i, "scale": float(lora == name)} for i, lora in enumerate(self._loras)
                ]
                body |= {"lora": scales, "cache_prompt": not salt}
            status, text = self.call("/completions", body)
            if status == 200:
                self._forms = [form]
                return self._read(text, len(texts))
            reason = reason or f"answers {status} to '{name}': {shortened(text)}"
            if status not in _REFUSED_STATUS:
                break
        raise self._refuses(status, reason)

    def _refuses(self, status: int, reason: str) -> VerifyError:
        help = None
        if status in (401, 403):
            help = f"put the server's key into the environment variable {KEY}"
        elif status == 404 and not self.url.endswith("/v1"):
            help = f"the URL may lack its end: {self.url}/v1"
        return self.fails(reason, help)

    def _read(self, text: str, count: int) -> list[Answer]:
        try:
            choices = sorted(json.loads(text)["choices"], key=lambda choice: choice["index"])
            answers = [_tokens(choice["logprobs"]) for choice in choices]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise self.fails("gives no log-probabilities of completions") from error
        if len(answers) != count or not all(answers):
            raise self.fails(f"gives {len(answers)} answers to {count} texts")
        return answers


def shortened(text: str) -> str:
    """Return the start of a response on one line."""
    return " ".join(text.split())[:300]


def _tokens(logprobs: dict[str, Any]) -> Answer:
    """Parse the likeliest first tokens in OpenAI's or llama.cpp's format."""
    if top := logprobs.get("top_logprobs"):
        pairs = [(token, value) for token, value in top[0].items()]
    else:
        listed = logprobs["content"][0]["top_logprobs"]
        pairs = [(entry.get("id", entry["token"]), entry["logprob"]) for entry in listed]
    return {_token(token): float(value) for token, value in pairs}


def _token(token: int | str) -> int | str:
    number = str(token).removeprefix("token_id:")
    return int(number) if isinstance(token, int) or number != token else token
