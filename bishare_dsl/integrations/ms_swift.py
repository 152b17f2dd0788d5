"""Train a spec with ms-swift.

    swift sft --external_plugins PATH_OF_THIS_FILE --tuner_type bishare \\
        --model_kwargs '{"bishare_spec": "bishare_ke_ab"}' ...

``bishare_params`` sets the spec's params, as a JSON object in a string. The seed is ms-swift's.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from peft import get_peft_model
from swift.tuner_plugin import PeftTuner, tuners_map

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.diagnostics.codes.train import MISSING_ARGUMENT
from bishare_dsl.peft import BishareConfig
from bishare_dsl.reading import parse_json

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class BishareTuner(PeftTuner):  # type: ignore[misc]
    """Create the adapter of a spec. PEFT saves and loads it."""

    @staticmethod
    def prepare_model(args: Any, model: PreTrainedModel) -> PeftModel:
        """Adapt a model. ms-swift puts ``--model_kwargs`` into the environment.

        Raises:
            BishareError: the spec is missing (BS736) or wrong.
        """
        if not (spec := os.environ.get("BISHARE_SPEC")):
            help = """it is `--model_kwargs '{"bishare_spec": "bishare_ke_ab"}'`, say"""
            raise BishareError(MISSING_ARGUMENT(name="bishare_spec", help=help))
        params = parse_json(os.environ.get("BISHARE_PARAMS", "{}"))
        config = BishareConfig(spec=spec, params=params, seed=args.seed, task_type="CAUSAL_LM")
        return get_peft_model(model, config)


tuners_map["bishare"] = BishareTuner
