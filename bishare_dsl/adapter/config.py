"""``adapter_config.json``: the fields PEFT requires, and bishare's record of the adapter."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from bishare_dsl.diagnostics import AdapterError, lines_of
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.export.peft_config import PREFIX
from bishare_dsl.models.inspect import TENSORS as CHILD
from bishare_dsl.models.site import Architecture
from bishare_dsl.plan import Plan
from bishare_dsl.plan.names import attribute
from bishare_dsl.version import __version__

PEFT_TYPE = "BISHARE"
"""PEFT's name of the method."""

FORMAT = 2
"""The format of adapter folders that this version writes, and the newest that it reads (`docs/format.md`)."""

RECORD_FORMAT = 5
"""The number of this format in the field `RECORD`."""

RECORD = "bishare"
"""The config field that contains bishare's record."""

Entries = dict[str, dict[str, Any]]
"""``dtype``, ``shape`` and ``data`` of a file's tensors, by the last component of their keys."""

NAME = r"^\w[\w.-]*$"
"""Valid names of adapters in a library; each is also a file name."""


def member_fault(name: str) -> str | None:
    """Return why an adapter of a library cannot have a name, or None if it can."""
    if re.fullmatch(NAME, name):
        return None
    return "in a library it has letters, digits, `_`, `.` and `-`, and begins with none of the last two"


_DICTS = ("linears", "shapes")

_OF_PEFT = {
    "spec": "spec",
    "seed": "seed",
    "base_model": "base_model_name_or_path",
    "base_revision": "revision",
    "auto_mapping": "auto_mapping",
}


_IN_SHARING = ("drawn", "compact", "of_base", "marks")
"""Fields that are stored in `sharing`."""


def text_of(value: Any) -> str:
    """Return a value as canonical JSON text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def broken_config(path: str | Path, error: ValueError) -> AdapterError:
    """Create the error for an invalid config, with its first ten problems (BS604)."""
    return AdapterError(
        codes.BROKEN_CONFIG(path=path, reason=reason) for reason in lines_of(error, 10)
    )


class DrawnTensor(BaseModel):
    """A frozen tensor that is not stored: it is regenerated from ``seed`` and rounded to ``dtype``.

    ``sha256`` is the start of the SHA-256 of its bytes, row by row, little-endian.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["float64", "float32", "bfloat16", "float16"]
    sha256: str = Field(pattern="^[0-9a-f]{8}$")


class SignFingerprint(BaseModel):
    """Fingerprint of a tensor that is recomputed from the base's weights (`bishare_dsl.adapter.reproduced`).

    ``signs`` has a digit from 0 to 3 for each row: 2 if its first product is negative, plus 1 if its
    second is. ``sums`` are the sums of both products over the rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    signs: str = Field(pattern=r"^[0-3]+$")
    sums: tuple[float, float]


class AdapterConfig(BaseModel):
    """The config of an adapter.

    ``spec``, ``seed``, ``auto_mapping``, ``base_model`` (``base_model_name_or_path``) and
    ``base_revision`` (``revision``) are PEFT fields of the file. The others are in the field ``bishare``.

    ``spec`` is the text of the spec and ``seed`` the seed of the initial values. ``base_model`` is the
    base's id on the Hub, or the name that the user passed, and ``base_revision`` its commit, if known.
    ``base`` contains the base's shapes, which together with the spec determine the plan; ``plan`` is the
    plan's digest. ``tensors`` is the digest of the tensor file (`digest_of`), and ``digest`` in the file
    covers all these fields.

    ``drawn`` are tensors regenerated from the seed. ``compact`` names the parts that are stored instead
    of a quantised tensor, as ``TENSOR:PART``: its type and ``scales``. ``of_base`` are untrained tensors
    equal to the base's. ``packages`` gives the package and version of each third-party transform.
    ``rounded`` is the type of float32 tensors in the file; loading converts them back to float32.

    ``sharing`` is the plan for other readers (`bishare_dsl.adapter.sharing`), as JSON text. ``marks`` are
    fingerprints of frozen tensors that loading recomputes from the base's weights
    (`bishare_dsl.adapter.reproduced`). ``drawn``, ``compact``, ``of_base`` and ``marks`` are stored in
    ``sharing`` only: `bishare_dsl.adapter.contents.check_plan` reads them from it.

    In a library ``adapters`` has the digest of each adapter's private tensors, by name. ``beside`` is the
    digest of the modules that PEFT has saved in the same file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = RECORD_FORMAT
    versions: dict[str, str | None]
    spec: str
    seed: int
    base_model: str | None = None
    base_revision: str | None = None
    auto_mapping: dict[str, str | None] | None = None
    """The class of the base, which `AutoPeftModelForCausalLM` looks up."""
    base: Architecture
    plan: str
    tensors: str = ""
    drawn: dict[str, DrawnTensor] = {}
    compact: dict[str, tuple[str, ...]] = {}
    of_base: tuple[str, ...] = ()
    marks: dict[str, SignFingerprint] = {}
    packages: dict[str, Annotated[str, Field(pattern=r"^[\w.-]+( [\w.+!-]+)?$")]] = {}
    rounded: Literal["bfloat16", "int8", "int4"] | None = None
    adapters: dict[Annotated[str, Field(pattern=NAME)], str] | None = None
    beside: str | None = None
    sharing: Annotated[str, BeforeValidator(text_of)] = "{}"
    _contents: dict[str, Any] = PrivateAttr(default_factory=dict)
    """Contents of a checked `sharing`: one dict for all configs with the same text."""
    _fields: Mapping[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def fields(self) -> Mapping[str, Any]:
        """All fields of the file that was read, for PEFT."""
        return self._fields

    def record(self) -> dict[str, Any]:
        """Return the contents of the file's field ``bishare``."""
        record = self.model_dump(mode="json", exclude_none=True, exclude={*_OF_PEFT})
        for run in (*record["base"]["sites"], *record["base"]["others"]):
            # PEFT sorts the keys of its config, but the order of a block's layers matters.
            run |= {key: [list(pair) for pair in run[key].items()] for key in _DICTS if key in run}
        record["sharing"] = json.loads(self.sharing)
        record = {name: value for name, value in record.items() if name not in _IN_SHARING}
        return record | {"digest": record_digest(self.spec, self.seed, record)}

    def text(self) -> str:
        """Return the text of the file, in PEFT's layout."""
        own = {theirs: getattr(self, ours) for ours, theirs in _OF_PEFT.items()}
        fields = {"peft_type": PEFT_TYPE, "task_type": None, "inference_mode": True, **own}
        return layout(fields | {RECORD: self.record()})

    @classmethod
    def of(cls, fields: Any) -> AdapterConfig:
        """Validate the fields of the file.

        Raises:
            ValueError: this is not the config of a bishare adapter.
        """
        if not isinstance(fields, dict) or fields.get("peft_type") != PEFT_TYPE:
            raise ValueError(f"its `peft_type` is not {PEFT_TYPE}")
        record = fields.get(RECORD)
        record = record if isinstance(record, dict) else {}
        if record.get("format") != RECORD_FORMAT or not fields.get("spec"):
            raise ValueError(
                "it has an older format, or no spec: load it by bishare 0.4 and save it once "
                "(pip install bishare==0.4.0)"
            )
        if record.get("digest") != record_digest(fields.get("spec"), fields.get("seed"), record):
            raise ValueError("the config was changed after saving")
        described = {name: v for name, v in record.items() if name not in ("digest", "tensors")}
        own = {ours: fields[theirs] for ours, theirs in _OF_PEFT.items() if theirs in fields}
        config = _config_of(json.dumps(described | own))
        of_caller = {name: {**value} for name, value in config if isinstance(value, dict)}
        read = config.model_copy(update=of_caller | {"tensors": record.get("tensors", "")})
        read._fields = fields
        return read


def layout(value: Any, depth: int = 4) -> str:
    """Return JSON with one line for each entry down to a depth, to be readable and to diff well."""

    def lines(value: Any, depth: int, space: str) -> str:
        if not depth or not value or not isinstance(value, (dict, list)):
            return text_of(value)
        inner = space + " "
        if isinstance(value, list):
            parts, ends = [lines(part, depth - 1, inner) for part in value], "[]"
        else:
            parts = [
                f"{json.dumps(k)}: {lines(v, depth - 1, inner)}" for k, v in sorted(value.items())
            ]
            ends = "{}"
        return f"{ends[0]}\n{inner}" + f",\n{inner}".join(parts) + f"\n{space}{ends[1]}"

    return lines(value, depth, "") + "\n"


@lru_cache(maxsize=16)
def _config_of(text: str) -> AdapterConfig:
    """Return a config without its tensors' digest, parsed once for adapters with equal configs.

    The result is cached, so the caller must copy its dicts before changing them.
    """
    return AdapterConfig.model_validate(json.loads(text))


def record_digest(spec: object, seed: object, record: Mapping[str, object]) -> str:
    """Return the digest of a config's description of an adapter, without the name of the base."""
    others = {name: value for name, value in record.items() if name != "digest"}
    text = json.dumps([spec, seed, others], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def installed_versions() -> dict[str, str | None]:
    """Return the versions of the packages that write an adapter; None for one that is not installed."""
    versions: dict[str, str | None] = {"bishare": __version__}
    for package in ("torch", "transformers"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def part_name(tensor: str, part: str) -> str:
    """Return the name of a tensor's part in the file; tensor names never contain a colon."""
    return f"{tensor}:{part}"


def attribute_in(key: str) -> str:
    """Return the last component of a tensor's key (see `names_of`), or the whole key of a foreign tensor."""
    _, mark, name = key.rpartition(f"{CHILD}.")
    return attribute(name) if mark else key


def whole_in(key: str) -> str:
    """Return `attribute_in` of a key, or that of the whole tensor if the key is a part's."""
    return attribute_in(key).partition(":")[0]


def is_seed(name: str) -> bool:
    """Tell whether the last component of a key represents the seed: every tensor's name has a dot."""
    return name.startswith("seed_") and "__" not in name


def seed_key(seed: int) -> str:
    """Return the key of the empty tensor that represents a seed."""
    return f"{PREFIX}{CHILD}.seed_{seed}"


def split_entries(entries: Entries) -> tuple[Entries, Entries]:
    """Split entries into the adapter's and those of modules saved by PEFT, whose keys have dots."""
    own = {name: entry for name, entry in entries.items() if "." not in name}
    return own, {name: entry for name, entry in entries.items() if name not in own}


def key_of(plan: Plan, name: str) -> str:
    """Return the key of a tensor, or of a part of it, in the file."""
    owner = plan.tensor[name.partition(":")[0]].owner
    return PREFIX + ".".join(filter(None, (owner, CHILD, attribute(name))))
