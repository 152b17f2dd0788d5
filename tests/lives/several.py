"""What a user does with several adapters of one model, in one place: these calls are what may change."""

from __future__ import annotations

from typing import Any

from bishare_dsl import compile_spec, load_adapter

FIRST = "default"


class Several:
    """The adapters of an adapted model by name: one is active, the others wait."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.model.bishare.adapters)

    @property
    def active(self) -> str:
        return self.model.bishare.active_adapter

    def add(self, spec: Any, name: str, seed: int) -> None:
        compile_spec(spec, self.model, seed=seed, name=name)

    def load(self, folder: str, name: str) -> None:
        load_adapter(folder, self.model, name=name)

    def switch(self, name: str) -> None:
        self.model.bishare.set_adapter(name)

    def delete(self, name: str) -> None:
        self.model.bishare.delete_adapter(name)

    def run(self, inputs: dict[str, Any], names: list[str | None]) -> Any:
        """Run a batch in which each row has an adapter of its own, or none."""
        return self.model(**inputs, adapter_names=names)
