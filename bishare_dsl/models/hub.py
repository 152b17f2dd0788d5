"""Asking the Hugging Face Hub, once and shortly.

Left to itself, a look-up of a model that is not in the cache is tried six times over 23 seconds where
there is no network. Here one request with a short limit decides whether the Hub can be reached, and
the cache is used where it cannot.
"""

from __future__ import annotations

from pathlib import Path

from bishare_dsl.diagnostics import ModelError, one_line
from bishare_dsl.diagnostics.codes.models import HUB_REFUSED, HUB_UNREACHABLE

_SECONDS = 5.0
_OFFLINE = (
    "without a connection these work: a preset such as `llama-7b`, a checkpoint folder, a config.json, "
    "a .gguf file, and models that are in the Hugging Face cache already (`HF_HOME`)"
)


def cached_folder(model_id: str) -> Path | None:
    """Give the folder in the local cache that holds the current revision of a Hub model, config and all."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model_id, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def require_hub(model_id: str) -> None:
    """Return if the Hub has this model and gives it out.

    Raises:
        ModelError: the Hub cannot be reached or may not be asked (BS504), or it says no (BS505).
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
    )

    if is_offline_mode():
        raise ModelError(
            HUB_UNREACHABLE(name=model_id, reason="HF_HUB_OFFLINE is set", help=_OFFLINE)
        )
    # The token is found by huggingface_hub where the user has logged in; None means that.
    try:
        get_hf_file_metadata(hf_hub_url(model_id, "config.json"), timeout=_SECONDS)
    except GatedRepoError:
        help = f"accept its licence at https://huggingface.co/{model_id}, then run `hf auth login`"
        raise ModelError(HUB_REFUSED(name=model_id, reason="it is gated", help=help)) from None
    except RepositoryNotFoundError:
        reason = "there is no such repository, or it is private"
        help = "check the id; for a private repository run `hf auth login`"
        raise ModelError(HUB_REFUSED(name=model_id, reason=reason, help=help)) from None
    except EntryNotFoundError:
        reason = "the repository has no config.json"
        help = "download its .gguf file, if it has one, and give that"
        raise ModelError(HUB_REFUSED(name=model_id, reason=reason, help=help)) from None
    except Exception as error:
        # Every transport has exceptions of its own, and huggingface_hub has changed its transport twice.
        raise ModelError(
            HUB_UNREACHABLE(name=model_id, reason=one_line(error), help=_OFFLINE)
        ) from error
