"""A server that speaks OpenAI's completions: its models, and the next token's log-probabilities."""

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
"""The environment variable with the key of a server that asks for one."""

_SECONDS = 600
_MOST_BYTES = 2**26
_REFUSED = (400, 422)
# Token ids where the server gives them; fields that it does not know may be refused.
_FORMS = [(logprobs, extra) for extra in (True, False) for logprobs in (20, 5)]


class VerifyError(BishareError):
    """A server does not answer what verifying asks."""


class Server:
    """A server of models by their names.

    Args:
        url: where its API is, such as ``http://localhost:8000/v1``.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise self.fails("cannot be asked: the URL does not begin with http:// or https://")
        local = urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")
        self._opener = build_opener(*([ProxyHandler({})] if local else []))
        self._forms = list(_FORMS)
        self._loras: list[str] | None = None

    def fails(self, reason: str, help: str | None = None) -> VerifyError:
        """Return the error that the server does something, or does not (BS872)."""
        return VerifyError(codes.NO_ANSWER(url=self.url, reason=reason, help=help))

    def call(self, path: str, body: Any = None, root: bool = False) -> tuple[int, str]:
        """Return the status and the text that the server answers with.

        Args:
            path: below the URL, or below its ``root``.
            body: what to post as JSON; None to get.

        Raises:
            VerifyError: there is no answer (BS872).
        """
        address = (self.url.removesuffix("/v1") if root else self.url) + path
        request = Request(address, None if body is None else json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        if key := os.environ.get(KEY):
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with self._opener.open(request, timeout=_SECONDS) as answer:
                return answer.status, answer.read(_MOST_BYTES).decode("utf-8", "replace")
        except HTTPError as error:
            return error.code, error.read(_MOST_BYTES).decode("utf-8", "replace")
        except (OSError, ValueError) as error:
            raise self.fails(f"does not answer: {one_line(error)}") from error

    def base(self, name: str) -> str:
        """Return what the base is called: the model that is listed first, besides ``name``.

        Raises:
            VerifyError: there is none (BS872).
        """
        status, text = self.call("/models")
        try:
            listed = json.loads(text)["data"] if status == 200 else []
            names = [str(one["id"]) for one in listed if not one.get("parent")]
        except (ValueError, KeyError, TypeError, AttributeError):
            listed, names = [], []
        if any(one.get("owned_by") == "llamacpp" for one in listed):
            self._find_loras(name)
            return ""
        if found := [one for one in names if one != name]:
            return found[0]
        raise self.fails(f"lists no base model besides '{name}'", "name it: --base NAME")

    def _find_loras(self, name: str) -> None:
        """Read which adapters a llama.cpp server has: it applies them to every request."""
        status, text = self.call("/lora-adapters", root=True)
        found = json.loads(text) if status == 200 else []
        self._loras = [Path(one["path"]).stem for one in found]
        if name not in self._loras:
            help = nearest(name, self._loras)
            raise self.fails(f"has no adapter '{name}'", help or "start it with --lora")

    def ask(self, name: str, texts: Sequence[str], *, salt: bool = True) -> list[Answer]:
        """Return what the server holds likely after each text.

        Args:
            name: of the model, or the adapter.
            texts: asked in one request.
            salt: whether to keep off what the server's prefix cache has.

        Raises:
            VerifyError: it does not answer, or without log-probabilities (BS872).
        """
        reason = ""
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
            if status not in _REFUSED:
                break
        raise self.fails(reason)

    def _read(self, text: str, count: int) -> list[Answer]:
        try:
            found = sorted(json.loads(text)["choices"], key=lambda choice: choice["index"])
            answers = [_tokens(choice["logprobs"]) for choice in found]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise self.fails("gives no log-probabilities of completions") from error
        if len(answers) != count or not all(answers):
            raise self.fails(f"gives {len(answers)} answers to {count} texts")
        return answers


def shortened(text: str) -> str:
    """Return the start of what a server says, on one line."""
    return " ".join(text.split())[:300]


def _tokens(logprobs: dict[str, Any]) -> Answer:
    """Read the likeliest first tokens, in OpenAI's form or in llama.cpp's."""
    if top := logprobs.get("top_logprobs"):
        pairs = [(token, value) for token, value in top[0].items()]
    else:
        listed = logprobs["content"][0]["top_logprobs"]
        pairs = [(one.get("id", one["token"]), one["logprob"]) for one in listed]
    return {_token(token): float(value) for token, value in pairs}


def _token(token: int | str) -> int | str:
    number = str(token).removeprefix("token_id:")
    return int(number) if isinstance(token, int) or number != token else token
