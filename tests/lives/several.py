"""What PEFT does with several adapters of one model, by the tuner layer that its methods call."""

from __future__ import annotations

from typing import Any

from bishare_dsl.compiler import make_plan, read_fitting
from bishare_dsl.peft.method import install

FIRST = "default"


class Several:
    """The adapters of an adapted model by name: one is active, the others' tensors stand beside its."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.model.bishare.adapters)

    @property
    def active(self) -> str:
        [name] = self.model.bishare.active
        return name

    def add(self, spec: Any, name: str, seed: int) -> None:
        install(self.model, make_plan(spec, self.model), seed, name)

    def load(self, folder: str, name: str) -> None:
        stored, _ = read_fitting(folder, self.model)
        install(self.model, stored, name=name)

    def switch(self, name: str) -> None:
        self.model.bishare.set_adapter(name)

    def delete(self, name: str) -> None:
        self.model.bishare.delete_adapter(name)

    def run(self, inputs: dict[str, Any], names: list[str | None]) -> Any:
        """Run a batch in which each row has an adapter of its own, or none."""
        with self.model.bishare.rows(names):
            return self.model(**inputs)
