"""``adapter_config.json``: the fields PEFT requires, and bishare's record of the adapter."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from bishare_dsl.convert.peft_config import PREFIX
from bishare_dsl.diagnostics import AdapterError, lines_of
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.diagnostics.interrupt import unhidden_interrupt
from bishare_dsl.folder.fingerprint import Fingerprint, SignFingerprint
from bishare_dsl.language import read
from bishare_dsl.models.site import TENSORS as CHILD
from bishare_dsl.models.site import Architecture
from bishare_dsl.plan import Plan, build_plan
from bishare_dsl.plan.names import attribute
from bishare_dsl.reading import parse_json
from bishare_dsl.spec import MAGNITUDE, Spec
from bishare_dsl.transforms.described import transforms_of
from bishare_dsl.transforms.registry import package_version, transform_names

PEFT_TYPE = "BISHARE"
"""PEFT's name of the method."""

FORMAT = 7
"""The format of adapter folders that this version writes, and the newest that it reads (`docs/format.md`)."""

FORMAT_0_5 = 6
"""As `FORMAT`, with ``sharing`` in the place of ``entries``; 0.5 wrote it."""

FORMAT_0_4 = 5
"""As `FORMAT_0_5`, with each tensor alone; 0.4 wrote it. A state dict in memory is of this form, too."""

RECORD = "bishare"
"""The config field that contains bishare's record."""

Entries = dict[str, dict[str, Any]]
"""``dtype``, ``shape`` and ``data`` of a file's tensors, by the last component of their keys."""

NAME = r"^\w[\w.-]*$"
"""Valid names of adapters in a library; each is also a file name."""


OF_PEFT = {
    "spec": "spec",
    "seed": "seed",
    "base_model": "base_model_name_or_path",
    "base_revision": "revision",
    "auto_mapping": "auto_mapping",
    "task_type": "task_type",
}
"""Fields of `AdapterConfig` that are PEFT's, with their names there."""

ORIGIN = ("base_model", "base_revision", "auto_mapping", "task_type", "fingerprint")
"""Fields of `AdapterConfig` about the base that do not change what the adapter computes."""


def text_of(value: Any) -> str:
    """Return a value as canonical JSON text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def broken_config(path: str | Path, error: ValueError) -> AdapterError:
    """Create the error for an invalid config, with its first ten problems (BS604)."""
    return AdapterError(codes.BROKEN_CONFIG(path=path, reason=r) for r in lines_of(error, 10))


class Entry(BaseModel):
    """How loading gets a tensor that a folder does not store.

    ``seed``: regenerated from the adapter's seed, and rounded to ``dtype``; ``sha256`` begins the SHA-256 of
    its bytes, row by row, little-endian. ``base``: recomputed from the base's weights and known by its
    ``marks``, or without marks an untrained parameter of the base.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    way: Literal["seed", "base"]
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None
    sha256: Annotated[str, Field(pattern="^([0-9a-f]{8})?$")] | None = None
    marks: SignFingerprint | None = None


class AdapterConfig(BaseModel):
    """The config of an adapter.

    ``spec``, ``seed``, ``auto_mapping``, ``task_type``, ``base_model`` (``base_model_name_or_path``) and
    ``base_revision`` (``revision``) are PEFT fields of the file. The others are in the field ``bishare``.

    ``spec`` is the text of the spec and ``seed`` the seed of the initial values. ``base_model`` is the
    base's id on the Hub, or the name that the user passed, and ``base_revision`` its commit, if known.
    ``base`` contains the base's shapes, which together with the spec determine the plan; ``plan`` is the
    plan's digest. ``tensors`` is the digest of the tensor file (`digest_of`), and ``digest`` in the file
    covers all these fields.

    ``entries`` are the tensors that are not stored. ``packages`` gives the package and version of each
    third-party transform. ``rounded`` is the type of float32 tensors in the file; loading converts them back
    to float32. ``fingerprint`` is of the base's weights, if they were at hand when the adapter was saved.

    In a library ``adapters`` has the digest of each adapter's private tensors, by name. ``beside`` is the
    digest of the modules that PEFT has saved in the same file.

    ``command`` names the command whose result the folder is, so that its ``--force`` may replace it. What was
    trained, or saved from Python, has none.

    ``sharing`` is of older formats alone, as JSON text. Their ``entries`` are in it:
    `bishare_dsl.folder.contents.check_plan` reads them from there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    versions: dict[str, str | None]
    spec: str
    seed: int
    base_model: str | None = None
    base_revision: str | None = None
    auto_mapping: dict[str, str | None] | None = None
    """The class of the base, which `AutoPeftModel` looks up where there is no task."""
    task_type: str | None = None
    base: Architecture
    plan: str
    tensors: str = ""
    entries: dict[str, Entry] = {}
    packages: dict[str, Annotated[str, Field(pattern=r"^[\w.-]+( [\w.+!-]+)?$")]] = {}
    fingerprint: Fingerprint | None = None
    rounded: Literal["bfloat16"] | None = None
    adapters: dict[Annotated[str, Field(pattern=NAME)], str] | None = None
    beside: str | None = None
    sharing: Annotated[str, BeforeValidator(text_of)] | None = None
    command: str | None = None
    fields: Mapping[str, Any] = Field(default={}, exclude=True)
    """All fields of the file that was read, for PEFT."""

    @property
    def alone(self) -> bool:
        """Whether each tensor is stored alone, without stacks."""
        return self.format == FORMAT_0_4

    @property
    def origin(self) -> dict[str, Any]:
        """The base that it was saved on: the fields of `ORIGIN`."""
        return {name: value for name in ORIGIN if (value := getattr(self, name)) is not None}

    def ways(self, *ways: str) -> dict[str, Entry]:
        """Return the entries that are stored in one of these ways, by the tensor's name."""
        return {name: entry for name, entry in self.entries.items() if entry.way in ways}

    @property
    def marks(self) -> dict[str, SignFingerprint]:
        """Marks of the tensors that are recomputed from the base's weights, by name."""
        return {name: entry.marks for name, entry in self.entries.items() if entry.marks}

    def record(self) -> dict[str, Any]:
        """Return the contents of the file's field ``bishare``."""
        with unhidden_interrupt():
            record = self.model_dump(mode="json", exclude_none=True, exclude={*OF_PEFT, "sharing"})
        if self.sharing is not None:
            del record["entries"]
            record["sharing"] = parse_json(self.sharing)
        return record | {"digest": record_digest(self.spec, self.seed, record)}

    def text(self) -> str:
        """Return the text of the file."""
        own = {theirs: getattr(self, ours) for ours, theirs in OF_PEFT.items()}
        return config_text(
            {"peft_type": PEFT_TYPE, "inference_mode": True, **own, RECORD: self.record()}
        )

    @classmethod
    def of(cls, fields: Any, folder: str | Path = "FOLDER") -> AdapterConfig:
        """Validate the fields of the file.

        Args:
            fields: of the file.
            folder: of the file, for error messages.

        Raises:
            ValueError: this is not the config of a bishare adapter.
            AdapterError: its tensors are quantised (BS663).
        """
        if not isinstance(fields, dict) or fields.get("peft_type") != PEFT_TYPE:
            raise ValueError(f"its `peft_type` is not {PEFT_TYPE}")
        record = fields.get(RECORD)
        if not isinstance(record, dict):
            record = {}
        _check_format(record, fields.get("spec"))
        if record.get("digest") != record_digest(fields.get("spec"), fields.get("seed"), record):
            raise ValueError("the config was changed after saving")
        if record.get("rounded") in ("int8", "int4"):
            raise _quantised(record, folder)
        described = {name: v for name, v in record.items() if name not in ("digest", "tensors")}
        for ours, theirs in OF_PEFT.items():
            if theirs in fields:
                described[ours] = fields[theirs]
        config = _config_of(json.dumps(described))
        of_caller = {name: {**value} for name, value in config if isinstance(value, dict)}
        of_folder = {"tensors": record.get("tensors", ""), "fields": fields}
        return config.model_copy(update=of_caller | of_folder)


def _check_format(record: Mapping[str, Any], spec: object) -> None:
    """Check that this version reads the format of a config.

    Raises:
        ValueError: it does not.
    """
    number = record.get("format")
    if type(number) is int and number > FORMAT:
        raise ValueError("it has a later format: pip install --upgrade bishare")
    if number not in (FORMAT, FORMAT_0_5, FORMAT_0_4) or not spec:
        old = "an older format, or no spec: load it by bishare 0.4 and save it once"
        raise ValueError(f"it has {old} (pip install bishare==0.4.0)")
    other = "sharing" if number == FORMAT else "entries"
    if other in record:
        raise ValueError(f"format {number} has no `{other}`")
    if number != FORMAT and not isinstance(record.get("sharing"), dict):
        raise ValueError("it has no `sharing`")


def _quantised(record: Mapping[str, Any], folder: str | Path) -> AdapterError:
    """Create the error for a folder of quantised tensors, with the command that converts it (BS663)."""
    places = [str(folder)]
    if isinstance(record.get("adapters"), dict):
        places = [f"{folder}#{name}" for name in record["adapters"]] or places
    named = shlex.join(places[:3])
    if len(places) > 3:
        named += " ..."
    help = (
        "convert it by bishare 0.5: `pip install bishare==0.5.0`, then "
        f"`bishare convert {named} --for bishare --out NEW`"
    )
    return AdapterError(codes.QUANTISED_FOLDER(folder=folder, form=record["rounded"], help=help))


def config_text(fields: Mapping[str, Any]) -> str:
    """Return the text of a config: a line for each field that is set, as spaces cost small adapters much."""
    filled = {name: value for name, value in sorted(fields.items()) if value not in (None, {}, [])}
    lines = []
    for name, value in filled.items():
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=list)
        lines.append(f'"{name}": {text}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


@lru_cache(maxsize=16)
def _config_of(text: str) -> AdapterConfig:
    """Return a config without its tensors' digest, parsed once for adapters with equal configs.

    The result is cached, so the caller must copy its dicts before changing them.
    """
    return AdapterConfig.model_validate(parse_json(text))


def record_digest(spec: object, seed: object, record: Mapping[str, object]) -> str:
    """Return the digest of a config's description of an adapter, without the name of the base."""
    others = {name: value for name, value in record.items() if name != "digest"}
    text = json.dumps([spec, seed, others], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_transforms(config: AdapterConfig) -> int:
    """Check that an adapter's transforms are installed, and return the number of shares in its spec.

    Raises:
        BishareError: the spec is invalid, or a transform is not installed (BS619).
    """
    spec = _spec_of(config.spec)
    used = {step.transform for share in spec.shares for step in share.steps.values()}
    for name in sorted(used - {*transform_names(), MAGNITUDE}):
        help = "import what registers it first, or name its file, if it is yours, by `--spec-transform`"
        if package := config.packages.get(name):
            help = f"install what it was saved with: {package}"
        raise AdapterError(codes.MISSING_TRANSFORM(name=name, help=help))
    return len(spec.shares)


@lru_cache(maxsize=16)
def plan_of_text(spec_text: str, base: Architecture) -> Plan:
    """Build the plan of a spec's text, cached because many adapters have the same plan.

    Raises:
        BishareError: see `build_plan`.
        ValueError: the text uses other specs.
    """
    return build_plan(_spec_of(spec_text), base)[0]


def packages_of(plan: Plan) -> dict[str, str]:
    """Return the third-party packages of the plan's transforms."""
    names = {name for term in plan.terms for name in transforms_of(term.transform, term.options)}
    packages = {name: package_version(name) for name in sorted(names)}
    return {name: package for name, package in packages.items() if package}


@lru_cache(maxsize=16)
def _spec_of(spec_text: str) -> Spec:
    spec, where = read(spec_text, "spec.share")
    if where.used:
        raise ValueError("it uses other files")
    return spec


def attribute_in(key: str) -> str:
    """Return the last component of a tensor's key, or the whole key of a foreign tensor."""
    _, mark, name = key.rpartition(f"{CHILD}.")
    return attribute(name) if mark else key


def is_seed(name: str) -> bool:
    """Tell whether the last component of a key represents the seed: every tensor's name has a dot."""
    return name.startswith("seed_") and "__" not in name


def split_entries(entries: Entries) -> tuple[Entries, Entries]:
    """Split entries into the adapter's and those of modules saved by PEFT, whose keys have dots."""
    own = {name: entry for name, entry in entries.items() if "." not in name}
    return own, {name: entry for name, entry in entries.items() if name not in own}


def key_of(plan: Plan, name: str) -> str:
    """Return the key of a tensor in a state dict in memory."""
    return PREFIX + ".".join(filter(None, (plan.tensor[name].owner, CHILD, attribute(name))))


def file_key(key: str) -> str:
    """Return the whole key in the file, of the last component of a key."""
    return f"{PREFIX}{CHILD}.{key}"
