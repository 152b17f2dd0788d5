"""What examples of further training begin with: a model with a new adapter, or one that was trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bishare_dsl import compile_spec, load_adapter


@dataclass
class Start:
    """The flags beside those of TRL."""

    model: str = field(metadata={"help": "a checkpoint folder or a Hub id"})
    data: str = field(metadata={"help": "rows in JSON lines"})
    adapter: str = field(
        default="bishare_ke", metadata={"help": "a spec, or the folder of an adapter to train on"}
    )

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the model with the adapter, and its tokenizer."""
        model = AutoModelForCausalLM.from_pretrained(self.model)
        adapt = load_adapter if Path(self.adapter).is_dir() else compile_spec
        return adapt(self.adapter, model), AutoTokenizer.from_pretrained(self.model)
