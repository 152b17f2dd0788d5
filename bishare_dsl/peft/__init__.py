"""bishare as a method of PEFT: importing this registers it.

    model = get_peft_model(model, BishareConfig(spec="bishare_ke_ab", task_type="CAUSAL_LM"))

Whatever takes a `PeftConfig`, a `PeftModel` or the folder of one then takes bishare's.
"""

from bishare_dsl.peft.config import BishareConfig
from bishare_dsl.peft.method import BishareModel, register

__all__ = ["BishareConfig", "BishareModel"]

register()
