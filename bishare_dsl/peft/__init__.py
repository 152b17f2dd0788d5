"""The PEFT method of bishare, registered on import.

    model = get_peft_model(model, BishareConfig(spec="bishare_ke", task_type="CAUSAL_LM"))

PEFT then handles bishare's configs, models and folders like those of any other method.
"""

import peft
from peft.tuners.tuners_utils import BaseTuner

if not hasattr(BaseTuner, "_get_adapter_state_dict"):
    raise ImportError(
        f"bishare_dsl.peft needs PEFT 0.21 or later, and {peft.__version__} is installed: an older one saves "
        'adapters of which nobody can tell what they are. Run: pip install --upgrade "peft>=0.21"'
    )

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from bishare_dsl.folder.config import PEFT_TYPE
from bishare_dsl.peft.config import BishareConfig
from bishare_dsl.peft.method import BishareModel, as_peft_model
from bishare_dsl.peft.replaced import REPLACED
from bishare_dsl.peft.types import peft_type

__all__ = ["BishareConfig", "BishareModel", "as_peft_model"]

if peft_type() not in PEFT_TYPE_TO_CONFIG_MAPPING:
    register_peft_method(name=PEFT_TYPE.lower(), config_cls=BishareConfig, model_cls=BishareModel)
    for replacement in REPLACED:
        replacement.put()
