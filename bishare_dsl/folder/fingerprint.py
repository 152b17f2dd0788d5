"""Know a base again by a few numbers, and tensors that are computed from its weights.

Both are products with random vectors of `bishare_dsl.initial.counter`. A `Fingerprint` of a base has sums of
such products of its weights. Marks of a frozen tensor, a `SignFingerprint`, let a folder omit it: loading
recomputes it from the base. The signs of singular directions differ between machines: stored signs restore
them, and stored sums detect another base. Nothing here imports torch before it computes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from bishare_dsl.diagnostics import AdapterError, Problem
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.initial.counter import fill
from bishare_dsl.models.hooks import is_offloaded, is_sharded_tensor

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bishare_dsl.models.weights import Weight
    from bishare_dsl.plan import Plan

_LINEAR, _OTHERS = 24, 4
"""The most numbers of linear maps, and of the other groups."""

_COLUMNS, _TOKENS = 4, 1024
"""The columns of each linear map, and the rows of the embedding, that are read."""

_SAME, _IN_FLOAT16, _QUANTISED = 2e-8, 3e-3, {8: 0.03, 4: 0.2}
"""The largest relative distances of equal weights, of weights of float32 rounded to float16, and of linear
maps quantised to so many bits. One step of training with a learning rate of 1e-6 moves them by 4e-7."""

_SUM_TOLERANCE = 2e-3
"""Tolerance of the sums of marks, relative to the tensor's norm; they have four digits.

A tensor is omitted only if float64 reproduces it ten times closer, so that float32 on another machine
determines it too. Directions with almost equal singular values are ambiguous, and are stored.
"""


@dataclass(frozen=True)
class SignFingerprint:
    """Marks of a tensor that is recomputed from the base's weights.

    ``signs`` has a digit from 0 to 3 for each row: 2 if its first product is negative, plus 1 if its
    second is. ``sums`` are the sums of both products over the rows.
    """

    signs: Annotated[str, Field(pattern=r"^[0-3]+$")]
    sums: tuple[float, float]


@dataclass(frozen=True)
class Fingerprint:
    """A base's weights in about 500 bytes, rounded to bfloat16 first, so that their type does not matter.

    ``linear`` comes from the first columns of every linear map in a block, ``embedding`` from the first rows
    of the token table, ``norms`` from the vectors in blocks; the last two are empty where their weights are
    not in memory. ``dtype`` is the type of the model, and ``bits`` 8 or 4 if linear maps are quantised.
    ``tokenizer`` is `vocabulary_digest` of the checkpoint's tokenizer, if it is on disk.
    """

    linear: tuple[FiniteFloat, ...]
    embedding: tuple[FiniteFloat, ...]
    norms: tuple[FiniteFloat, ...]
    dtype: str
    bits: Literal[8, 4] | None = None
    tokenizer: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None


def fingerprint(model: nn.Module) -> Fingerprint:
    """Return the fingerprint of a base, with or without adapters in it; of a merged one, that of the sum.

    Args:
        model: with its weights: dense, quantised, or offloaded, but not sharded over processes.

    Raises:
        AdapterError: its weights are not here (BS624), or cannot be dequantised (BS623).
    """
    from bishare_dsl.models.inspect import linear_maps
    from bishare_dsl.models.site import block_of, in_adapter

    maps = linear_maps(model)
    inside = [weight for path, weight in maps.items() if block_of(path)]
    own = {n: p for n, p in model.named_parameters() if not in_adapter(n)}
    for name, parameter in own.items():
        if is_sharded_tensor(parameter):
            # Any look at it is a call of all processes, and only one of them may be saving.
            raise AdapterError(codes.NO_WEIGHT(path=name, reason="it is not in this process"))
    vectors = [p for n, p in own.items() if p.dim() == 1 and n.endswith("weight") and block_of(n)]
    tables = [w.matrix()[:, :_TOKENS].flatten() for w in maps.values() if w.looks_up][:1]
    kinds = filter(None, (weight.replacement() for weight in inside))
    return Fingerprint(
        linear=_sums("linear", _LINEAR, map(_columns, inside)),
        embedding=_sums("embedding", _OTHERS, _OTHERS * tables),
        norms=_sums("norms", _OTHERS, vectors),
        dtype=str(next(p.dtype for p in own.values() if p.is_floating_point()))[len("torch.") :],
        bits=min((8 if "8" in k and "4" not in k else 4 for k in kinds), default=None),
        tokenizer=_tokenizer_of(model),
    )


def vocabulary_digest(vocabulary: Mapping[str, int]) -> str:
    """Return the SHA-256 of a tokenizer's vocabulary: of the JSON of its tokens and ids, sorted."""
    return sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()


def _tokenizer_of(model: Any) -> str | None:
    from tokenizers import Tokenizer
    from transformers.utils.hub import cached_file

    with suppress(Exception):  # The name is any text of the user's.
        file = cached_file(model.config.name_or_path, "tokenizer.json", local_files_only=True)
        return vocabulary_digest(Tokenizer.from_file(str(file)).get_vocab())
    return None


def base_changes(saved: Fingerprint | None, present: Fingerprint | None) -> list[Problem]:
    """Warn if an adapter was saved on another base, as far as both bases are known (BS620)."""
    if saved is None or present is None:
        return []
    far = difference(saved, present)
    tokenizers = {saved.tokenizer, present.tokenizer} - {None}
    what = [f"its weights are {far:.1g} apart"] if far else []
    what += ["its tokenizer has other tokens"] if len(tokenizers) > 1 else []
    return [codes.OTHER_FINGERPRINT(what=", and ".join(what))] if what else []


def difference(saved: Fingerprint, present: Fingerprint) -> float:
    """Return how far apart two bases are, relative to their weights; 0 if rounding alone may explain it.

    The largest distance of a group counts, beyond what types and quantisation of the two may change.
    """
    halved = saved.dtype != present.dtype and "float16" in (saved.dtype, present.dtype)
    rounding = _IN_FLOAT16 if halved else _SAME
    few: int = min(filter(None, (saved.bits, present.bits)), default=0)
    allowed = {"linear": _QUANTISED.get(few, rounding), "embedding": rounding, "norms": rounding}
    apart = [0.0]
    for group, most in allowed.items():
        one = getattr(saved, group)
        other = getattr(present, group)
        far = math.dist(one, other) / (math.hypot(*one) or 1.0) if len(one) == len(other) else 0.0
        apart.append(far if far > most else 0.0)
    return max(apart)


def _columns(weight: Weight) -> torch.Tensor:
    """Return the first columns of a linear map, in any encoding; a layer on disk is called."""
    import torch

    from bishare_dsl.models.weights import products

    values = weight.values()
    if values.is_meta and is_offloaded(weight.module) and weight.expert is None:
        values = products(weight.module, torch.eye(_COLUMNS, weight.d_in, dtype=values.dtype)).mT
    if values.is_meta:
        raise AdapterError(codes.NO_WEIGHT(path=weight.path, reason="it is not in this process"))
    return values[:, :_COLUMNS].flatten()


def _sums(name: str, most: int, vectors: Iterable[torch.Tensor]) -> tuple[float, ...]:
    """Sum products of vectors with random ones, relative to the norms; empty on meta or with NaN."""
    sums: dict[int, float] = {}
    for i, vector in enumerate(vectors):
        if vector.is_meta or not vector.isfinite().all():
            return ()
        row = vector.detach().bfloat16().double().unsqueeze(0)
        product = _products(row, 1, {"uniform": [-1.0, 1.0]}, f"{name} {i}").item()
        sums[i % most] = sums.get(i % most, 0.0) + product / (row.norm().item() or 1.0)
    return tuple(float(f"{number:.12g}") for number in sums.values())


def _products(rows: torch.Tensor, count: int, how: dict[str, Any], text: str) -> torch.Tensor:
    """Return the products of each row with ``count`` random vectors, in float64."""
    import torch

    random = torch.empty(len(rows), count, rows.shape[1], dtype=torch.float32, device="cpu")
    fill(random.numpy(), how, 0, text)
    return (random.double() @ rows.detach().cpu().double().unsqueeze(2)).squeeze(2)


# Tensors that the base's weights give -------------------------------------------------------------------


def marks_of(tensor: torch.Tensor) -> SignFingerprint:
    """Return the marks of a tensor."""
    products = _products(tensor, 2, {"normal": 1.0}, "marks")
    a, b = products.sum(0).tolist()
    signs = "".join(str(2 * (a < 0) + (b < 0)) for a, b in products.tolist())
    return SignFingerprint(signs, (float(f"{a:.4g}"), float(f"{b:.4g}")))


def find_reproduced(
    plan: Plan, tensors: Mapping[str, torch.Tensor], reproduced: Mapping[str, torch.Tensor]
) -> dict[str, SignFingerprint]:
    """Find frozen tensors that can be recomputed from the base, except fitted tensors, with their marks.

    Args:
        plan: of the adapter.
        tensors: of the adapter.
        reproduced: the tensors computed from the base, in float64.
    """
    from bishare_dsl.initial.singular import fitted

    marked = {}
    stored = fitted(plan)
    frozen = [t for t in plan.tensors if t.name in reproduced and not t.trainable]
    for name in (t.name for t in frozen if (t.like or t.name) not in stored):
        marks = marks_of(tensors[name])
        value = tensors[name].cpu().double()
        with suppress(AdapterError):
            apart = _restored(name, reproduced[name], marks).cpu() - value
            if apart.norm() <= _SUM_TOLERANCE / 10 * value.norm():
                marked[name] = marks
    return marked


def check_reproduced(
    marks: Mapping[str, SignFingerprint], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Check recomputed tensors, and restore the signs of their rows.

    Args:
        marks: of the saved tensors.
        tensors: as computed from this base.

    Raises:
        AdapterError: a tensor differs (BS699).
    """
    return {name: _restored(name, tensors[name], saved) for name, saved in marks.items()}


def _restored(name: str, tensor: torch.Tensor, marks: SignFingerprint) -> torch.Tensor:
    """Return a tensor with the signs that match its marks, if they match and are not ambiguous."""
    if tensor.is_meta:
        return tensor
    other = AdapterError(codes.OTHER_WEIGHTS(name=name))
    if len(marks.signs) != len(tensor):
        raise other
    products = _products(tensor, 2, {"normal": 1.0}, "marks")
    norms = tensor.detach().cpu().double().norm(dim=1)
    saved = products.new_tensor([[1 - int(s) // 2 * 2, 1 - int(s) % 2 * 2] for s in marks.signs])
    along = (products * saved).sum(1)
    signs = 1 - 2 * (along < 0).double()
    apart = signs @ products - products.new_tensor(marks.sums)
    ambiguous = (along.abs() < 4 * _SUM_TOLERANCE * norms).any()
    if ambiguous or (apart.abs() > _SUM_TOLERANCE * norms.norm()).any():
        raise other
    return tensor * signs.unsqueeze(1).to(tensor)
