"""Train a spec with Axolotl.

plugins: [bishare_dsl.integrations.axolotl.BisharePlugin]
adapter: bishare
bishare: {spec: bishare_ke_ab, params: {r_inter: 32}}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axolotl.integrations.base import AdapterCapabilities, BasePlugin
from peft import PeftConfig, PeftModel, get_peft_model
from pydantic import BaseModel

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.diagnostics.codes.train import MISSING_ARGUMENT
from bishare_dsl.peft import BishareConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Adapter(BaseModel):
    """The block ``bishare:``."""

    spec: str
    params: dict[str, int | float | str] = {}
    seed: int = 0


class Arguments(BaseModel):
    """Keys that the plug-in adds to Axolotl's YAML."""

    bishare: Adapter | None = None


class BisharePlugin(BasePlugin):  # type: ignore[misc]
    """Create and load adapters if the config has ``adapter: bishare``."""

    def get_input_args(self) -> str:
        """Return the path of the class with the keys for the YAML."""
        return f"{__name__}.{Arguments.__name__}"

    def get_adapter_capabilities(self) -> list[AdapterCapabilities]:
        """Return the name of the adapter type."""
        return [AdapterCapabilities(name="bishare")]

    def pre_model_load(self, cfg: Any) -> None:
        """Read the spec before a model is loaded. Raises the errors of `_config_of`."""
        if cfg.adapter == "bishare" and not cfg.lora_model_dir:
            _config_of(cfg)

    def load_adapter(
        self, model: PreTrainedModel, cfg: Any, inference: bool = False, config_only: bool = False
    ) -> tuple[PeftModel | None, PeftConfig] | None:
        """Load the adapter from ``lora_model_dir`` if it is set, else create a new one."""
        if cfg.adapter != "bishare":
            return None
        if cfg.lora_model_dir and not config_only:
            loaded = PeftModel.from_pretrained(
                model, cfg.lora_model_dir, is_trainable=not inference
            )
            return loaded, loaded.peft_config["default"]
        config = _config_of(cfg)
        return None if config_only else get_peft_model(model, config), config


def _config_of(cfg: Any) -> BishareConfig:
    """Read the block ``bishare:``.

    Raises:
        BishareError: the block is missing (BS736), or its spec is wrong.
    """
    if not cfg.bishare:
        help = "name a spec, as in `bishare: {spec: bishare_ke_ab}`"
        raise BishareError(MISSING_ARGUMENT(name="bishare", help=help))
    return BishareConfig(**cfg.bishare, task_type="CAUSAL_LM")
