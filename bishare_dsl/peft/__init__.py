"""The PEFT method of bishare, registered on import.

    model = get_peft_model(model, BishareConfig(spec="bishare_ke_ab", task_type="CAUSAL_LM"))

PEFT then handles bishare's configs, models and folders like those of any other method.
"""

import peft
from peft.tuners.tuners_utils import BaseTuner

if not hasattr(BaseTuner, "_get_adapter_state_dict"):
    raise ImportError(
        f"bishare_dsl.peft needs PEFT 0.21 or later, and {peft.__version__} is installed: an older one saves "
        'adapters of which nobody can tell what they are. Run: pip install --upgrade "peft>=0.21"'
    )

from bishare_dsl.peft.config import BishareConfig
from bishare_dsl.peft.method import BishareModel, as_peft_model, register
from bishare_dsl.peft.named import (
    create_lorafa_optimizer,
    create_loraplus_optimizer,
    rescale_adapter_scale,
)

__all__ = [
    "BishareConfig",
    "BishareModel",
    "as_peft_model",
    "create_lorafa_optimizer",
    "create_loraplus_optimizer",
    "rescale_adapter_scale",
]

register()
