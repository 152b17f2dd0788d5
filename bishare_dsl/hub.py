"""The Hugging Face Hub: asked once and shortly for a model, an adapter or data.

Left to itself, a look-up of what is not in the cache is tried six times over 23 seconds where there is no
network. Here one request with a short limit decides whether the Hub can be reached, and the cache is used
where it cannot.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from bishare_dsl.diagnostics import AdapterError, BishareError, ModelError, one_line
from bishare_dsl.diagnostics.codes.models import HUB_REFUSED, HUB_UNREACHABLE

_SECONDS = 5.0
_MODEL_OFFLINE = (
    "without a connection these work: a preset such as `llama-7b`, a checkpoint folder, a config.json, "
    "a .gguf file, and models that are in the Hugging Face cache already (`HF_HOME`)"
)
_ADAPTER_OFFLINE = (
    "without a connection these work: an adapter folder, which is looked for here first, and adapters that "
    "are in the Hugging Face cache already (`HF_HOME`)"
)

# A revision is the name of a file in the Hub's cache: none of its parts begins with a dot.
_ADAPTER_ID = re.compile(
    r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w-][\w.-]*(?:/[\w-][\w.-]*)*))?(?:#(.*))?", re.ASCII
)

_MARKS = ("bishare_config.json", "adapter_config.json")
_FILES = (
    *_MARKS,
    "adapter.safetensors",
    "adapter_model.safetensors",
    "spec.share",
    "plan.json",
    "README.md",
)
"""What an adapter is made of, ours or PEFT's. Nothing else of a repository is fetched, and no pickle."""

_MEMBER = "adapters/{}.safetensors"
"""What a library has for one of its adapters."""


def cached_folder(model_id: str) -> Path | None:
    """Return the folder in the local cache that holds the current revision of a Hub model, config and all."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model_id, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def require_hub(model_id: str) -> None:
    """Check that the Hub has this model and gives it out.

    Raises:
        ModelError: the Hub cannot be reached or may not be asked (BS504), or it says no (BS505).
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import EntryNotFoundError

    with _asked(model_id, ModelError, _MODEL_OFFLINE):
        if is_offline_mode():
            raise ConnectionError("HF_HUB_OFFLINE is set")
        try:
            # The token is found by huggingface_hub where the user has logged in.
            get_hf_file_metadata(hf_hub_url(model_id, "config.json"), timeout=_SECONDS)
        except EntryNotFoundError:
            reason = "the repository has no config.json"
            help = "download its .gguf file, if it has one, and give that"
            raise ModelError(HUB_REFUSED(name=model_id, reason=reason, help=help)) from None


def adapter_folder(place: str | os.PathLike[str]) -> Path:
    """Return the folder of an adapter, fetched from the Hub first where it is the id of one there.

    An id is ``owner/name``, or ``owner/name@revision``; after it may stand the ``#adapter`` of a library, of
    which no other adapter is fetched. A folder of that name wins over it. Where the Hub cannot be reached, an
    adapter in the cache will do.

    Raises:
        AdapterError: the Hub cannot be reached and the cache has no such adapter (BS504), or the Hub does
            not give it out, or it is not an adapter (BS505).
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RevisionNotFoundError

    path = Path(place)
    match = _ADAPTER_ID.fullmatch(os.fspath(place))
    if match is None or os.path.exists(path) or path.parent.is_dir():  # noqa: PTH110 - a long name is none
        return path
    name, revision, adapter = match.groups()
    # What is not a name is looked for in vain, and said to be none.
    files = [*_FILES, _MEMBER.format("*" if adapter is None else escape(adapter))]
    with _asked(name, AdapterError, _ADAPTER_OFFLINE):
        try:
            found = Path(
                snapshot_download(
                    name, revision=revision, allow_patterns=files, etag_timeout=_SECONDS
                )
            )
        except RevisionNotFoundError:
            reason = f"it has no revision `{revision}`"
            raise AdapterError(HUB_REFUSED(name=name, reason=reason)) from None
    if not any((found / mark).is_file() for mark in _MARKS):
        reason = f"the repository is not an adapter: it has neither {' nor '.join(_MARKS)}"
        raise AdapterError(HUB_REFUSED(name=name, reason=reason))
    return found if adapter is None else Path(f"{found}#{adapter}")


@contextmanager
def _asked(name: str, raised: type[BishareError], offline: str) -> Iterator[None]:
    """Turn what goes wrong while the Hub is asked into our own error, of the class ``raised``."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise raised(HUB_REFUSED(name=name, reason=one_line(error))) from None
    try:
        yield
    except BishareError:
        raise
    except GatedRepoError:
        help = f"accept its licence at https://huggingface.co/{name}, then run `hf auth login`"
        raise raised(HUB_REFUSED(name=name, reason="it is gated", help=help)) from None
    except RepositoryNotFoundError:
        reason = "there is no such repository, or it is private"
        help = "check the id; for a private repository run `hf auth login`"
        raise raised(HUB_REFUSED(name=name, reason=reason, help=help)) from None
    except Exception as error:
        # Every transport has exceptions of its own, and huggingface_hub has changed its transport twice.
        reason = one_line(error.__cause__ or error)
        raise raised(HUB_UNREACHABLE(name=name, reason=reason, help=offline)) from error
