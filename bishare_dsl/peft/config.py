"""`BishareConfig`: PEFT's configuration of an adapter, stored in ``adapter_config.json``."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

from peft import PeftConfig

from bishare_dsl.compiler import read_spec
from bishare_dsl.diagnostics import AdapterError, BishareError, nearest
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.diagnostics.words import peft_advice
from bishare_dsl.folder.card import write_card
from bishare_dsl.folder.config import (
    OF_PEFT,
    RECORD,
    AdapterConfig,
    broken_config,
    config_text,
    split_entries,
)
from bishare_dsl.folder.contents import check_plan, digest_of, entries_in
from bishare_dsl.folder.files import CONFIG, TENSORS
from bishare_dsl.language import own_text
from bishare_dsl.peft.types import peft_type
from bishare_dsl.resources import shipped_specs
from bishare_dsl.spec import Spec
from bishare_dsl.writing import replace_file


class ModulesToSave(list[str]):
    """Modules that PEFT trains in addition to a spec.

    For some tasks PEFT adds the names of heads after the adapter is in the model, and would wrap a head
    that the spec trains. Such a head gets a placeholder name, because PEFT crashes on an empty list.
    """

    of_spec: frozenset[str] = frozenset()

    def extend(self, names: Iterable[str]) -> None:
        super().extend(f"{name}_of_spec" if name in self.of_spec else name for name in names)


_KINDS: dict[str, tuple[type, ...]] = {
    "spec": (str, Spec, os.PathLike),
    "params": (dict,),
    "seed": (int,),
    "modules_to_save": (list, tuple, set, type(None)),
    "bishare": (dict, type(None)),
}
"""Types allowed for the fields of a config, which may come from an untrusted file."""


@dataclass
class BishareConfig(PeftConfig):
    """A spec, the values of its params, and the seed for its tensors.

    Args:
        spec: a spec, its text (several lines), the path of a ``.share`` file, or the name of a spec
            shipped with bishare. The config stores the text, so the folder needs no other file.
        params: values to use instead of those in the spec.
        seed: for the tensors; the same seed gives the same adapter on any device.
        modules_to_save: modules that PEFT copies and trains in addition to the spec, such as a new
            classifier.
        trainable_token_indices: rows of the embedding that PEFT trains in addition, as for `LoraConfig`.
        bishare: bishare's record of a saved adapter; do not set it.

    Raises:
        BishareError: the text is not a spec; lists every problem with its position.
        FileNotFoundError: no such spec.
    """

    spec: str | Spec | os.PathLike[str] = ""
    params: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    modules_to_save: list[str] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    target_modules: None = None
    bishare: dict[str, Any] | None = None

    def __new__(cls, *values: Any, **given: Any) -> BishareConfig:
        """Explain how to write a setting that belongs in the spec, and that a spec needs its name.

        Raises:
            TypeError: an argument is not a field, or has no name. PEFT drops unknown fields of a file that a
                newer version wrote, with a warning, by the words of this error.
        """
        if values:
            raise TypeError(f"name the spec: `{cls.__name__}(spec={values[0]!r})`")
        fields = signature(cls.__init__).parameters
        for name in given.keys() - fields.keys():
            spec = None
            with suppress(BishareError, OSError):
                spec, _ = read_spec(given["spec"]) if "spec" in given else (None, None)
            if spec and any(name == param.name for param in spec.params):
                advice = f'`params={{"{name}": {given[name]!r}}}` sets a param of the spec'
            else:
                said = peft_advice(name, repr(given[name]))
                advice = f"in the spec, {said}" if said else nearest(name, fields) or ""
            raise TypeError(f"{cls.__name__} got an unexpected keyword argument `{name}`: {advice}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = peft_type()
        if self.target_modules is not None:
            raise AdapterError(codes.SPEC_TARGETS())
        for name, kinds in _KINDS.items():
            if not isinstance(value := getattr(self, name), kinds):
                path = CONFIG if self.bishare else "BishareConfig"
                reason = f"`{name}` takes {kinds[0].__name__}, not {value!r}"
                raise AdapterError(codes.BROKEN_CONFIG(path=path, reason=reason))
        # For a loaded adapter: whether its tensors still have to be compared with the record.
        self._unchecked = self.bishare is not None
        self.task_adds_heads = False
        self._where = None
        self.last_record: AdapterConfig | None = None
        """The adapter's record when it was last loaded or saved."""
        if self.spec:
            name = "\n" if isinstance(self.spec, Spec) else os.fspath(self.spec)
            # The config may be untrusted, and errors quote lines of the file.
            if not ("\n" in name or name.endswith(".share") or name in shipped_specs()):
                reason = "neither a `.share` file nor a spec that ships (a text has several lines)"
                if meant := nearest(name, shipped_specs(), few=0):
                    reason = f"no spec of that name ships: {meant}"
                raise FileNotFoundError(2, reason, name)
            spec, where = read_spec(self.spec)
            self.spec = own_text(spec.with_params(self.params), where, changed=bool(self.params))
            self._where = None if self.params else where  # It refers to the text before.

    def copy(self) -> BishareConfig:
        """Return a copy that changes with the adapter in a model; the user's config stays unchanged."""
        config = copy.copy(self)
        config.modules_to_save = copy.copy(self.modules_to_save)
        config.last_record = None
        return config

    def mark_loaded(self) -> None:
        """Accept the loaded record as verified, once the whole adapter is in a model."""
        if self._unchecked:
            self.last_record = self.loaded_record()
            self._unchecked = False
            self.bishare = None

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of ``adapter_config.json``."""
        fields: dict[str, Any] = super().to_dict()
        if (record := self.last_record) is not None:
            known = {theirs: getattr(record, ours) for ours, theirs in OF_PEFT.items()}
            fields |= {name: value for name, value in known.items() if not fields.get(name)}
            fields |= {"spec": record.spec, "seed": record.seed, RECORD: record.record()}
        return fields

    def loaded_record(self) -> AdapterConfig | None:
        """Return the record of a saved adapter to be loaded, or None for any other.

        Raises:
            AdapterError: the record is not in bishare's format (BS604).
        """
        try:
            config = AdapterConfig.of(super().to_dict()) if self.bishare is not None else None
            return config and check_plan(config)[1]
        except ValueError as error:
            raise broken_config(CONFIG, error) from error

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write ``adapter_config.json``, and replace PEFT's empty model card."""
        folder = Path(save_directory)
        mapping = kwargs.get("auto_mapping_dict")
        tensors = folder / TENSORS
        if self.last_record is not None and tensors.is_file():
            _, beside = split_entries(entries_in(tensors.read_bytes()))
            noted = {"beside": digest_of(beside) if beside else None}
            self.last_record = self.last_record.model_copy(update=noted)
        folder.mkdir(parents=True, exist_ok=True)
        fields = self.to_dict() | {"peft_version": None}  # The record says who wrote it.
        fields |= {"auto_mapping": mapping} if mapping else {}
        replace_file(folder / CONFIG, config_text(fields).encode())
        self.write_card(save_directory)

    def write_card(self, folder: str) -> None:
        """Write the model card of a saved adapter, unless the folder has a custom card."""
        if (stored := self.last_record or self.loaded_record()) is not None:
            write_card(Path(folder), check_plan(stored)[0], stored)
