"""The record of a run in its ``run.json``: all that it depends on, and its results."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from bishare_dsl.folder.fingerprint import Fingerprint
from bishare_dsl.reading import parse_json
from bishare_dsl.train.prepare import Prepared
from bishare_dsl.train.request import RECORD, Settings, argument_types
from bishare_dsl.train.result import TrainResult

PACKAGES = ("bishare", "torch", "transformers", "peft", "accelerate", "datasets")
"""The packages whose versions can change the numbers of a run."""


def record_run(prepared: Prepared, base: Fingerprint | None) -> dict[str, Any]:
    """Return all that a run depends on, as plain JSON values.

    Args:
        prepared: the run.
        base: the fingerprint of the base; None for a run of no steps.
    """
    plan = prepared.trainable.plan
    data = dict[str, Any]()
    for task in prepared.steps.tasks:
        data[task.name] = {part: asdict(report) for part, report in task.data.items()}
    return {
        "arguments": _resolved_arguments(prepared),
        "versions": _versions(),
        "device": _device_name(prepared.args.device),
        "processes": prepared.args.world_size,
        "plan": {
            "spec": plan.spec,
            "params": dict(plan.params),
            "digest": plan.digest,
            "parameters": plan.trainable,
        },
        "data": data,
        "base": None if base is None else asdict(base),
    }


def _resolved_arguments(prepared: Prepared) -> dict[str, Any]:
    """Return the arguments of transformers and of `Settings`, with the values that the run uses."""
    request = prepared.request
    args = prepared.args
    own = Settings.model_fields.keys()
    given = request.as_dict(None)
    resolved = args.to_dict() | request.model_dump(include=set(own))
    for name in own & given.keys():  # Paths are absolute there.
        resolved[name] = given[name]
    resolved["warmup_steps"] = prepared.warm_up(len(prepared.steps))
    names = argument_types().keys() | own
    return {name: resolved[name] for name in sorted(names & resolved.keys())}


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def record_results(result: TrainResult, held_out: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the results of a run, with those of each held-out row.

    Args:
        result: the finished run.
        held_out: ``losses``, numbers with blanks between them, and for rows with options ``correct``,
            a digit for each.
    """
    return {**result.as_dict(), "held_out": held_out}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield in words how the record of a run differs from that of the run that it repeats."""
    for name in ("versions", "plan", "data", "base", "device", "processes"):
        earlier = before.get(name)
        later = parse_json(json.dumps(now[name]))  # JSON has lists for tuples.
        if name == "data":
            earlier = _digests(earlier)
            later = _digests(later)
        if earlier == later:
            continue
        if name == "versions" and isinstance(earlier, Mapping):
            for package, number in later.items():
                if earlier.get(package) != number:
                    yield f"{package} is {number}, and was {earlier.get(package)}"
        elif name in ("device", "processes"):
            yield f"{name}: {later}, and was {earlier}"
        else:
            yield f"the {name} is another"


def _digests(data: Any) -> list[Any]:
    """Return the digests of the examples in a record, without the paths of their files."""
    tasks = data.values() if isinstance(data, Mapping) else ()
    return [{part: report.get("digest") for part, report in parts.items()} for parts in tasks]


def training_text(run: Mapping[str, Any]) -> str:
    """Say in Markdown for a model card how the run of a ``run.json`` with results trained its adapter."""
    record = run[RECORD]
    arguments = record["arguments"]
    results = record["results"]
    versions = record["versions"]
    lines = list[str]()
    for parts in record["data"].values():
        train = parts["train"]
        lines.append(
            f"- data: `{train['name']}`, {train['kept']:,} examples (sha256 {train['digest'][:16]})"
        )
        if "eval" in parts:
            lines.append(
                f"- held out: `{parts['eval']['name']}`, {parts['eval']['kept']:,} examples"
            )
    steps = f"{results['steps']:,} of {results['batch']:,} examples, {results['epochs']:.3g} epochs"
    warm_up = f"{arguments['warmup_steps']:g} steps of warm-up"
    lines += [
        f"- steps: {steps}",
        f"- learning rate: {arguments['learning_rate']:g}, after {warm_up}",
        f"- seed: {arguments['seed']}",
    ]
    if results["loss_last"] is not None:
        lines.append(f"- last training loss: {results['loss_last']:.4g}")
    if results["eval_loss"] is not None:
        lines.append(f"- held-out loss: {results['eval_loss']:.4g}")
    if results["accuracy"] is not None:
        lines.append(f"- held-out accuracy: {results['accuracy']:.1%} among the options")
    known = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    lines.append(f"- versions: {known}; on {record['device']}")
    return "\n".join(["By `bishare train`; `run.json` has all arguments.", "", *lines])
