"""What examples of further training begin with: a model with a new adapter, or one that was trained."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from bishare_dsl.peft import BishareConfig


@dataclass
class Start:
    """The flags beside those of TRL."""

    model: str = field(metadata={"help": "a checkpoint folder or a Hub id"})
    data: str = field(metadata={"help": "rows in JSON lines"})
    adapter: str = field(
        default="bishare_ke", metadata={"help": "a spec, or the folder of an adapter to train on"}
    )
    params: str = field(default="{}", metadata={"help": "values for the spec's params, as JSON"})

    def load(self) -> dict[str, Any]:
        """Return what a trainer of TRL takes: the model, its tokenizer, and the config of a new adapter."""
        model = AutoModelForCausalLM.from_pretrained(self.model)
        config = None
        if Path(self.adapter).is_dir():
            model = PeftModel.from_pretrained(model, self.adapter, is_trainable=True)
        else:
            params = json.loads(self.params)
            config = BishareConfig(spec=self.adapter, params=params, task_type="CAUSAL_LM")
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        return {"model": model, "processing_class": tokenizer, "peft_config": config}
