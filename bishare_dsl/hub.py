"""Access the Hugging Face Hub with one short request per model, adapter or data set.

By default, huggingface_hub retries a missing file six times over 23 seconds without a network. Here one
request with a short timeout decides whether the Hub can be reached; otherwise the cache is used.
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
_OFFLINE = "without a connection these work: {} in the Hugging Face cache already (`HF_HOME`)"
_MODELS = "a preset such as `llama-7b`, a checkpoint folder, a config.json, a .gguf, and models"
_ADAPTERS = "an adapter folder, which is looked for here first, and adapters"

# A revision names a file in the Hub's cache, so no part may begin with a dot.
_ADAPTER_ID = re.compile(
    r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w-][\w.-]*(?:/[\w-][\w.-]*)*))?(?:#(.*))?", re.ASCII
)

_CONFIG = "adapter_config.json"
_FILES = (_CONFIG, "adapter_model.safetensors", "README.md")
"""The files of an adapter of bishare or PEFT. No other file, and no pickle, is fetched from a repository."""


def cached_folder(model_id: str) -> Path | None:
    """Return the folder in the local cache with the current revision of a Hub model, or None."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model_id, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def require_hub(model_id: str) -> None:
    """Check that the Hub has a model and allows access.

    Raises:
        ModelError: the Hub cannot be reached or access is turned off (BS504), or the Hub refuses (BS505).
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import EntryNotFoundError

    with _hub_errors(model_id, ModelError, _MODELS):
        if is_offline_mode():
            raise ConnectionError("HF_HUB_OFFLINE is set")
        try:
            # huggingface_hub finds the token of a logged-in user.
            get_hf_file_metadata(hf_hub_url(model_id, "config.json"), timeout=_SECONDS)
        except EntryNotFoundError:
            reason = "the repository has no config.json"
            help = "download its .gguf file, if it has one, and give that"
            raise ModelError(HUB_REFUSED(name=model_id, reason=reason, help=help)) from None


def adapter_folder(place: str | os.PathLike[str]) -> Path:
    """Return the folder of an adapter, after fetching it from the Hub if ``place`` is a Hub id.

    An id is ``owner/name`` or ``owner/name@revision``, optionally with the ``#adapter`` of a library,
    whose other adapters are not fetched. A local folder of that name wins. If the Hub cannot be reached,
    a cached adapter is used.

    Raises:
        AdapterError: the Hub cannot be reached and the adapter is not cached (BS504), the Hub
            refuses it, or it is not an adapter (BS505).
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RevisionNotFoundError

    path = Path(place)
    match = _ADAPTER_ID.fullmatch(os.fspath(place))
    if match is None or os.path.exists(path) or path.parent.is_dir():  # noqa: PTH110 - a long name is False
        return path
    name, revision, adapter = match.groups()
    # An invalid name fails with an error about its form.
    files = [*_FILES, f"adapters/{'*' if adapter is None else escape(adapter)}.safetensors"]
    with _hub_errors(name, AdapterError, _ADAPTERS):
        try:
            folder = snapshot_download(
                name, revision=revision, allow_patterns=files, etag_timeout=_SECONDS
            )
        except RevisionNotFoundError:
            reason = f"it has no revision `{revision}`"
            raise AdapterError(HUB_REFUSED(name=name, reason=reason)) from None
    cached = Path(folder)
    if not (cached / _CONFIG).is_file():
        reason = f"the repository is not an adapter: it has no {_CONFIG}"
        raise AdapterError(HUB_REFUSED(name=name, reason=reason))
    return cached if adapter is None else Path(f"{cached}#{adapter}")


@contextmanager
def _hub_errors(name: str, raised: type[BishareError], others: str) -> Iterator[None]:
    """Convert errors of requests to the Hub to ``raised``."""
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
        reason = "the repository does not exist, or is private"
        help = "check the id; for a private repository run `hf auth login`"
        raise raised(HUB_REFUSED(name=name, reason=reason, help=help)) from None
    except Exception as error:
        # Transports have different exceptions, and huggingface_hub has changed its transport twice.
        reason = one_line(error.__cause__ or error)
        help = _OFFLINE.format(others)
        raise raised(HUB_UNREACHABLE(name=name, reason=reason, help=help)) from error
