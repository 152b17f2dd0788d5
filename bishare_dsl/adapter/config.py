"""``adapter_config.json``: what PEFT reads of any adapter, and what bishare needs to read its own."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import zlib
from base64 import b64decode
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from bishare_dsl.diagnostics import AdapterError, lines_of
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.inspect import TENSORS as CHILD
from bishare_dsl.models.site import MAX_SITES, Architecture
from bishare_dsl.plan import Plan
from bishare_dsl.plan.names import attribute
from bishare_dsl.reading import MAX_CONFIG, parse_json
from bishare_dsl.version import __version__

PEFT_TYPE = "BISHARE"
"""What PEFT calls the method."""

FORMAT = 5
"""The format of an adapter's folder that this version writes, and the newest that it reads."""

RECORD = "bishare"
"""The field of the config with what is bishare's own."""

PREFIX = "base_model.model."
"""What PEFT puts before each key."""

Entries = dict[str, dict[str, Any]]
"""``dtype``, ``shape`` and ``data`` of the tensors in a file, by the last words of their keys."""

NAME = r"^\w[\w.-]*$"
"""What an adapter of a library may be called: it is the name of a file."""

_DICTS = ("linears", "shapes")

_OF_PEFT = {
    "spec": "spec",
    "seed": "seed",
    "base_model": "base_model_name_or_path",
    "base_revision": "revision",
    "auto_mapping": "auto_mapping",
}


_IN_SHARING = ("drawn", "compact", "of_base", "marks")
"""What `sharing` states since format 5, and the config stated before."""

STATED = 5
"""The first format of that kind."""


def text_of(value: Any) -> str:
    """Return JSON as its one text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def text_in(value: Any) -> str:
    """Return the text of JSON, which formats up to 4 compress where it is long.

    Raises:
        ValueError: it is neither JSON nor the base64 of its compressed text.
    """
    if not isinstance(value, str):
        return text_of(value)
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(b64decode(value), MAX_CONFIG)
    except zlib.error as error:
        raise ValueError(f"it is not packed: {error}") from error
    if not unpacker.eof:
        raise ValueError("it is not packed to its end")
    return text.decode()


def unpack(value: Any) -> Any:
    """Return a field of the file as JSON, whether it is packed or not.

    Raises:
        ValueError: it is none, or of a thing for each of more tensors than any adapter has.
    """
    found = parse_json(text_in(value)) if isinstance(value, str) else value
    if isinstance(found, dict) and len(found) > MAX_SITES:
        raise ValueError(f"it has more than {MAX_SITES:,} tensors")
    return found


def broken_config(path: str | Path, error: ValueError) -> AdapterError:
    """Make the error of a config that is none: the first ten things that are wrong with it (BS604)."""
    return AdapterError(
        codes.BROKEN_CONFIG(path=path, reason=reason) for reason in lines_of(error, 10)
    )


class DrawnTensor(BaseModel):
    """A frozen tensor that is not in the file: ``seed`` draws it, and it is rounded to ``dtype``.

    ``generator`` draws it: torch's for adapters of bishare 0.2. ``sha256`` are the first digits of that of
    its bytes, row by row, little-endian; other programs may leave it out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["float64", "float32", "bfloat16", "float16"]
    generator: Literal["philox", "torch"] = "torch"
    sha256: str = Field(default="", pattern="^([0-9a-f]{8,64})?$")


class Marks(BaseModel):
    """What tells the rows of a tensor that the base's weights give again: `bishare_dsl.adapter.recipes`.

    ``signs`` has for each row 0 to 3: 2 where its first product is negative, and 1 where its second is.
    ``sums`` are those of both products over the rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    signs: str = Field(pattern=r"^[0-3]+$")
    sums: tuple[float, float]


class AdapterConfig(BaseModel):
    """The config of an adapter.

    In the file ``spec``, ``seed``, ``auto_mapping``, ``base_model`` (``base_model_name_or_path``) and
    ``base_revision`` (``revision``) stand among the fields of PEFT, and the others in the field ``bishare``.

    ``spec`` is the whole text of the spec and ``seed`` drew the first values; ``base_model`` is the
    base's id on the Hub, or else what the user called it, and ``base_revision`` its commit there, where
    they are known. ``base`` are its shapes: with the spec they make the plan, of which ``plan`` is the
    digest. ``tensors`` is the digest of the file of tensors (`digest_of`), and ``digest`` in the
    file that of all this.

    ``drawn`` are the tensors that are not stored. ``compact`` names the parts that stand in the file for
    a tensor, each as ``TENSOR:PART``. ``of_base`` are those that are what the base has, and that nobody has
    trained. ``packages`` says for each transform that is not bishare's own which package, and which
    version, it is from. ``rounded`` is the type that float32 tensors were rounded to for
    the file; loaded, they are float32 again.

    ``sharing`` is the plan as other readers take it (`bishare_dsl.adapter.sharing`), a text of JSON; None in
    what bishare wrote before that. ``marks`` are those of frozen tensors that loading makes again from the
    base's weights (`bishare_dsl.adapter.recipes`). ``drawn``, ``compact``, ``of_base`` and ``marks`` stand in
    ``sharing`` alone: `bishare_dsl.adapter.contents.check_plan` finds them there. Without a ``spec`` the plan
    is the one that ``sharing`` states.

    Of a library ``adapters`` are the digests of what each adapter has for itself, by its name. ``beside`` is
    the digest of the tensors of modules that PEFT has saved in the file, beside the adapter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    versions: dict[str, str | None]
    spec: str
    seed: int
    base_model: str | None = None
    base_revision: str | None = None
    auto_mapping: dict[str, str | None] | None = None
    """The class of the base, by which `AutoPeftModelForCausalLM` finds it."""
    base: Architecture
    plan: str
    tensors: str = ""
    drawn: Annotated[dict[str, DrawnTensor], BeforeValidator(unpack)] = {}
    compact: dict[str, tuple[str, ...]] = {}
    of_base: tuple[str, ...] = ()
    marks: Annotated[dict[str, Marks], BeforeValidator(unpack)] = {}
    packages: dict[str, Annotated[str, Field(pattern=r"^[\w.-]+( [\w.+!-]+)?$")]] = {}
    rounded: Literal["bfloat16"] | None = None
    adapters: dict[Annotated[str, Field(pattern=NAME)], str] | None = None
    beside: str | None = None
    sharing: Annotated[str | None, BeforeValidator(text_in)] = None
    _contents: dict[str, Any] = PrivateAttr(default_factory=dict)
    """What a checked `sharing` states: one dict of all configs that were read from one text."""

    def record(self) -> dict[str, Any]:
        """Return what stands in the field ``bishare`` of the file."""
        record = self.model_dump(mode="json", exclude_none=True, exclude={*_OF_PEFT})
        for run in (*record["base"]["sites"], *record["base"]["others"]):
            # PEFT sorts the keys of its config, and the order of a block's layers counts.
            run |= {key: [list(pair) for pair in run[key].items()] for key in _DICTS if key in run}
        if self.sharing is not None:
            record["sharing"] = json.loads(self.sharing)
        if self.format >= STATED:
            record = {name: value for name, value in record.items() if name not in _IN_SHARING}
        return record | {"digest": seal(self.spec, self.seed, record)}

    def text(self) -> str:
        """Return the text of the file, as PEFT would write it."""
        own = {theirs: getattr(self, ours) for ours, theirs in _OF_PEFT.items()}
        fields = {"peft_type": PEFT_TYPE, "task_type": None, "inference_mode": True, **own}
        return layout(fields | {RECORD: self.record()})

    @classmethod
    def of(cls, fields: Any) -> AdapterConfig:
        """Check what stands in the file.

        Raises:
            ValueError: it is not the config of an adapter of bishare.
        """
        if not isinstance(fields, dict) or fields.get("peft_type") != PEFT_TYPE:
            raise ValueError(f"its `peft_type` is not {PEFT_TYPE}")
        record = fields.get(RECORD)
        record = record if isinstance(record, dict) else {}
        if is_of_others(fields):
            raise ValueError(
                "it has no spec: load the folder by `bishare_dsl.load_adapter`, and save it again"
            )
        if record.get("digest") != seal(fields.get("spec"), fields.get("seed"), record):
            raise ValueError("it is not what was saved")
        said = {name: v for name, v in record.items() if name not in ("digest", "tensors")}
        own = {ours: fields[theirs] for ours, theirs in _OF_PEFT.items() if theirs in fields}
        config = _config_of(json.dumps(said | own))
        of_caller = {name: {**value} for name, value in config if isinstance(value, dict)}
        return config.model_copy(update=of_caller | {"tensors": record.get("tensors", "")})


def layout(value: Any, depth: int = 4) -> str:
    """Return JSON with a line for each entry down to a depth, so that a person and `diff` can read it."""

    def lines(value: Any, depth: int, space: str) -> str:
        if not depth or not value or not isinstance(value, (dict, list)):
            return text_of(value)
        inner = space + " "
        if isinstance(value, list):
            parts, ends = [lines(each, depth - 1, inner) for each in value], "[]"
        else:
            parts = [
                f"{json.dumps(k)}: {lines(v, depth - 1, inner)}" for k, v in sorted(value.items())
            ]
            ends = "{}"
        return f"{ends[0]}\n{inner}" + f",\n{inner}".join(parts) + f"\n{space}{ends[1]}"

    return lines(value, depth, "") + "\n"


def is_compact(record: Mapping[str, Any] | None) -> bool:
    """Tell whether a config that was read, and not checked yet, has tensors in parts."""
    sharing = (record or {}).get("sharing")
    tensors = sharing.get("tensors") if isinstance(sharing, dict) else None
    parts = any("parts" in tensor for tensor in tensors) if isinstance(tensors, list) else False
    return parts or bool((record or {}).get("compact"))


def is_of_others(fields: Any) -> bool:
    """Tell whether another program has written a config: it has `sharing`, and neither spec nor digest."""
    record = fields.get(RECORD) if isinstance(fields, dict) else None
    return (
        isinstance(record, dict)
        and not fields.get("spec")
        and "digest" not in record
        and "sharing" in record
    )


@lru_cache(maxsize=16)
def _config_of(text: str) -> AdapterConfig:
    """Return a config without the digest of its tensors: thousands of adapters may say the same.

    It is kept, so whoever asks for one gets what nobody can change, and dicts of their own.
    """
    return AdapterConfig.model_validate(json.loads(text))


def seal(spec: object, seed: object, record: Mapping[str, object]) -> str:
    """Return the digest of what a config says of an adapter; the base may be called otherwise.

    Up to format 4 ``sharing`` is not in it.
    """
    number = record.get("format")
    left_out = ("digest",) if type(number) is int and number >= STATED else ("digest", "sharing")
    others = {name: value for name, value in record.items() if name not in left_out}
    text = json.dumps([spec, seed, others], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def installed_versions() -> dict[str, str | None]:
    """Return the versions of what writes an adapter; None for a package that is not installed."""
    found: dict[str, str | None] = {"bishare": __version__}
    for package in ("torch", "transformers"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def part_name(tensor: str, part: str) -> str:
    """Return the name in the file of a part of a tensor; no tensor has a colon in its name."""
    return f"{tensor}:{part}"


def attribute_in(key: str) -> str:
    """Return the last word of a tensor's key, by which `names_of` knows it; of no adapter's the whole key."""
    _, mark, name = key.rpartition(f"{CHILD}.")
    return attribute(name) if mark else key


def is_seed(name: str) -> bool:
    """Tell whether the last word of a key stands for the seed: no tensor's name is without a dot."""
    return name.startswith("seed_") and "__" not in name


def seed_key(seed: int) -> str:
    """Return the key of the empty tensor that stands for a seed."""
    return f"{PREFIX}{CHILD}.seed_{seed}"


def split_entries(entries: Entries) -> tuple[Entries, Entries]:
    """Return the entries of an adapter, and those that PEFT has saved beside it, whose keys have dots."""
    own = {name: entry for name, entry in entries.items() if "." not in name}
    return own, {name: entry for name, entry in entries.items() if name not in own}


def key_of(plan: Plan, name: str) -> str:
    """Return the key of a tensor in the file, or that of a part of it."""
    owner = plan.tensor[name.partition(":")[0]].owner
    return PREFIX + ".".join(filter(None, (owner, CHILD, attribute(name))))
