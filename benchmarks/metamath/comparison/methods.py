"""The compared methods: PEFT's configs and bishare's specs, by their names in experiments.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parents[1]


def experiments() -> dict[str, dict[str, Any]]:
    """Of each, `peft` with a config, or `spec` and `params`; `train` has what differs in training."""
    return json.loads((HERE / "experiments.json").read_text())


def experiment(name: str) -> dict[str, Any]:
    """One by its name, or by a folder of PEFT's comparison with adapter_config.json in it."""
    folder = Path(name)
    if (config := folder / "adapter_config.json").exists():
        train = folder / "training_params.json"
        found = {"peft": json.loads(config.read_text())}
        return found | ({"train": json.loads(train.read_text())} if train.exists() else {})
    known = experiments()
    if name not in known:
        raise SystemExit(f"there is no experiment {name}; there are {', '.join(known)}")
    return known[name]


def spec_of(experiment: dict[str, Any]) -> str:
    """The spec: a file in this folder, or the name of a shipped spec."""
    spec = experiment["spec"]
    return str(HERE / spec) if spec.endswith(".share") else spec


def adapt(experiment: dict[str, Any], model: Any, seed: int) -> Any:
    """The model with the experiment's adapter, in float32; the base is frozen."""
    if "spec" in experiment:
        from bishare_dsl import compile_spec

        return compile_spec(
            spec_of(experiment), model, params=experiment.get("params", {}), seed=seed
        )
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    config = dict(experiment["peft"])
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[config.pop("peft_type")]
    return get_peft_model(model, kind(**config))


def save(experiment: dict[str, Any], model: Any, folder: Path) -> int:
    """Save the adapter alone, and tell the bytes of its tensors' file."""
    (model.bishare if "spec" in experiment else model).save_pretrained(folder)
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def parameters(model: Any) -> tuple[int, int]:
    """The trainable parameters, and all parameters."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def file_bytes(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> int:
    """How long a safetensors file of these is, without writing it."""
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}
    header: dict[str, Any] = {"__metadata__": metadata}
    place = 0
    for name, tensor in sorted(
        tensors.items(), key=lambda item: (-item[1].element_size(), item[0])
    ):
        end = place + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [place, end],
        }
        place = end
    head = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-head // 8) * 8 + place


def peft_file(model: Any) -> int:
    """The bytes of what PEFT would save of a model on the meta device."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    return file_bytes(tensors, {"format": "pt"})
