"""Read adapters, compute what a server with them should answer, or one with a known fault, and judge."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from bishare_dsl.compiler import read_fitting
from bishare_dsl.convert.effective import check_linear, effective_factors, scale_changes
from bishare_dsl.convert.peft_config import TENSORS
from bishare_dsl.diagnostics import BishareError, Problem
from bishare_dsl.diagnostics.codes import verify as codes
from bishare_dsl.diagnostics.codes.adapter import NO_WEIGHT
from bishare_dsl.folder.files import is_peft
from bishare_dsl.folder.fingerprint import Fingerprint, base_changes, fingerprint
from bishare_dsl.hub import adapter_folder
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.models.site import Architecture, block_of
from bishare_dsl.models.weights import Weight, bias_of
from bishare_dsl.plan import Plan
from bishare_dsl.verify import judge as v
from bishare_dsl.verify.judge import NONE, WHOLE, WITHOUT, Expected, Row, judge
from bishare_dsl.verify.server import GREEDY_TOKENS, Asked, Bar, ServerError


@dataclass(frozen=True)
class Pair:
    """The update of a module's weight: ``dW = scale * up @ down``, float32.

    Attributes:
        down: A, ``(rank, d_in)``.
        up: B, ``(d_out, rank)``.
        scale: ``alpha / rank``, or 1 for a sum of several terms.
        changes: of a magnitude: returns ``g - 1`` of each row of W + dW, from W and W + dW.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float = 1.0
    changes: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight."""
        return len(self.up), self.down.shape[1]

    def swapped(self) -> Pair:
        """Return the pair with A and B swapped if the weight is square, else the pair itself."""
        square = len(self.up) == self.down.shape[1]
        return replace(self, down=self.up.t(), up=self.down.t()) if square else self


@dataclass(frozen=True)
class Contents:
    """An adapter, matched with the modules of a model.

    Attributes:
        pairs: the updates of the model's modules by path; empty if the files do not fit.
        problems: problems with the files.
        complete: whether ``pairs`` are the adapter's whole effect.
    """

    pairs: Mapping[str, Pair]
    problems: Sequence[Problem]
    complete: bool = False

    @property
    def fits(self) -> bool:
        """Whether nothing in the files is an error."""
        return not any(problem.severity == "error" for problem in self.problems)

    def __str__(self) -> str:
        none = "no low-rank update, or a DoRA without weights" if self.fits else "they do not fit"
        ranks = sorted({len(pair.down) for pair in self.pairs.values()})
        return f"{len(self.pairs)} modules, rank {' and '.join(map(str, ranks))}" if ranks else none


def read_contents(
    place: str | os.PathLike[str],
    model: nn.Module,
    base: Architecture,
    found: Fingerprint | None = None,
    strict: bool = False,
) -> Contents:
    """Read a LoRA of PEFT or an adapter of bishare, and match it with the modules of a model.

    Args:
        place: the adapter's folder or Hub id; ``LIBRARY#NAME`` for an adapter of a library.
        model: the base, which may be on the meta device unless the adapter is a DoRA.
        base: its shapes, with its name in messages.
        found: its fingerprint, if its weights are here.
        strict: whether an adapter of another base does not fit.

    Returns:
        What was found; an error of reading is one of its problems.
    """
    others: list[str] = []
    try:
        folder = adapter_folder(place)
        stored, fitting = read_fitting(folder, base, model)
        plan, tensors = stored.plan, stored.tensors()
        check_linear([t for t in plan.terms if not t.is_magnitude], "verify the adapter")
        if is_peft(folder):
            # Weights of the base, such as a longer token table, which may be trained.
            with safe_open(folder / TENSORS, "pt") as file:
                others = [n for n in file.keys() if ".base_layer." in n and ".lora_" not in n]  # noqa: SIM118
    except BishareError as error:
        # The magnitudes of a DoRA are computed last, and need weights.
        return Contents({}, [p for p in error.problems if p.code != NO_WEIGHT.code])
    pairs = _pairs(plan, tensors, linear_maps(model))
    others += [trained.parameter for trained in plan.trained]
    problems = [*fitting, *_zeros(pairs)]
    problems += [codes.NO_FACTORS(count=len(others), path=others[0])] if others else []
    changes = base_changes(stored.config.fingerprint, found)
    problems += [replace(problem, severity="error") if strict else problem for problem in changes]
    return Contents(pairs, problems, complete=not others)


def _pairs(
    plan: Plan, tensors: Mapping[str, torch.Tensor], maps: Mapping[str, Weight]
) -> dict[str, Pair]:
    pairs: dict[str, Pair] = {}
    for site in plan.sites:
        down, up = effective_factors(plan, tensors, site, scaled=True)
        magnitude = plan.magnitude(site.path)
        scales = {term.scale for term in plan.terms_of[site.path] if not term.is_magnitude}
        scale = scales.pop() if len(scales) == 1 and 0 not in scales else 1.0
        changes = None
        if magnitude is not None:
            mu = tensors[magnitude.tensors["mu"]].detach().float().squeeze(0)
            changes = partial(scale_changes, magnitude, mu)
        for path in site.paths if len(down) or changes else ():
            # A tied embedding uses the transposed update of the head.
            swapped = maps[path].looks_up and not maps[site.path].looks_up
            a, b = (up, down) if swapped else (down, up)
            pairs[path] = Pair(a, b.t() / scale, scale, changes)
    return pairs


def _zeros(pairs: Mapping[str, Pair]) -> Iterator[Problem]:
    """Find modules whose update is zero."""
    zero = [p for p, x in pairs.items() if x.changes is None and not (x.down.any() and x.up.any())]
    if zero:
        problem = codes.ADDS_NOTHING(count=len(zero), total=len(pairs), path=zero[0])
        yield replace(problem, severity="warning") if len(zero) < len(pairs) else problem


Pairs = Mapping[str, Pair]


def hypotheses(pairs: Pairs) -> dict[str, Pairs]:
    """Return what an engine may make of an adapter, by a description."""
    updates: dict[str, Pairs] = {NONE: {}, WHOLE: pairs}
    ways: dict[str, Callable[[Pair], Pair]] = {
        "without its scale alpha / r": lambda p: replace(p, scale=1.0) if p.scale != 1 else p,
        "without its magnitude": lambda p: replace(p, changes=None) if p.changes else p,
        "with A and B swapped where modules are square": Pair.swapped,
    }
    for words, change in ways.items():
        changed = {path: change(pair) for path, pair in pairs.items()}
        if any(changed[path] is not pair for path, pair in pairs.items()):
            updates[words] = changed
    blocks = {path: block for path in pairs if (block := block_of(path))}
    for step, words in ((1, "shifted by one layer"), (-1, "shifted back by one layer")):
        moved = {f"{a}.{int(i) + step}.{z}": pairs[path] for path, (a, i, z) in blocks.items()}
        updates[words] = {
            p: x for p, x in moved.items() if p in pairs and pairs[p].shape == x.shape
        }
    layers = sorted({int(block[1]) for block in blocks.values()})
    first = layers[: len(layers) // 2]
    for half in ("first", "second"):
        updates[f"with the {half} half of its layers alone"] = {
            path: pairs[path]
            for path, block in blocks.items()
            if (int(block[1]) in first) == (half == "first")
        }
    kinds = {path: path.rpartition(".")[2] for path in pairs}
    for kind in dict.fromkeys(kinds.values()):
        if others := {path: pair for path, pair in pairs.items() if kinds[path] != kind}:
            updates[WITHOUT + kind] = others
    return updates


class Reference:
    """A float32 model that answers texts with any update added to its weights.

    Args:
        model: the base, with weights.
        tokenizer: the model's tokenizer.
        texts: the texts to answer.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
    ) -> None:
        self.model, self.tokenizer, self.texts = model, tokenizer, texts
        self.maps = linear_maps(model)
        ids = [tokenizer(text)["input_ids"] for text in texts]
        self._last = torch.tensor([len(text_ids) - 1 for text_ids in ids])
        # Padding on the right, which a causal model does not see.
        self._ids = pad_sequence([torch.tensor(text_ids) for text_ids in ids], batch_first=True)
        self._mask = torch.arange(self._ids.shape[1]) <= self._last[:, None]

    @cached_property
    def base(self) -> torch.Tensor:
        """The answers of the base."""
        return self.answer({})

    @torch.no_grad()
    def answer(self, pairs: Pairs) -> torch.Tensor:
        """Return the log-probabilities of the next token with an update, ``(texts, vocabulary)``."""
        ids, mask = (tensor.to(self.model.device) for tensor in (self._ids, self._mask))
        with self._added(pairs):
            logits = self.model(input_ids=ids, attention_mask=mask.long()).logits
        last: torch.Tensor = logits[torch.arange(len(logits)), self._last]
        return last.float().log_softmax(-1)

    def greedy(self, pairs: Pairs) -> list[str]:
        """Return the likeliest continuation of each text with an update, at most up to its end."""
        how = GenerationConfig(max_new_tokens=GREEDY_TOKENS, do_sample=False, pad_token_id=0)
        how.eos_token_id = self.tokenizer.eos_token_id
        generate: Any = self.model.generate
        found = []
        with self._added(pairs):
            for row, last in zip(self._ids, self._last, strict=True):
                ids = row[None, : last + 1].to(self.model.device)
                new = generate(ids, generation_config=how, attention_mask=torch.ones_like(ids))
                found.append(new[0, last + 1 :])
        texts = self.tokenizer.batch_decode(found, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def expect(self, pairs: Pairs, *, greedy: bool = False) -> Expected:
        """Return the answers of each of the `hypotheses`, and the greedy texts if wanted."""
        ways = hypotheses(pairs).items()
        answers = {words: self.answer(some) if some else self.base for words, some in ways}
        texts = zip(self.greedy({}), self.greedy(pairs), strict=True) if greedy else ()
        rows = {words: answer.cpu().numpy() for words, answer in answers.items()}
        return Expected(self._columns, rows, [*texts])

    @contextmanager
    def _added(self, pairs: Pairs) -> Iterator[None]:
        with ExitStack() as undo:
            for path, pair in pairs.items():
                weight = self.maps[path]
                if weight.expert is None:
                    hook = _adds(pair, weight)
                    undo.callback(weight.module.register_forward_hook(hook).remove)
                else:  # Several matrices share a parameter.
                    matrix = weight.matrix()
                    before = matrix.clone()
                    undo.callback(matrix.copy_, before)
                    matrix.addmm_(pair.up, pair.down, alpha=pair.scale)
                    if pair.changes is not None:
                        matrix.addcmul_(pair.changes(before, matrix).unsqueeze(1), matrix)
            yield

    @cached_property
    def _columns(self) -> dict[int | str, int]:
        """The ids of tokens: themselves, and by texts that belong to a single token."""
        texts = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
        counts, names = Counter(texts), self.tokenizer.get_vocab()
        ids = names | {text: i for i, text in enumerate(texts) if counts[text] == 1}
        rows = range(self.base.shape[1])
        return {i: i for i in rows} | {text: i for text, i in ids.items() if i in rows}


def _adds(pair: Pair, weight: Weight) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]:
    """Return a hook that adds ``scale * up @ down`` to its module's weight, and scales the rows."""
    changes = None
    if pair.changes is not None:
        base = weight.values()
        changes = pair.changes(base, base.addmm(pair.up, pair.down, alpha=pair.scale))

    def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        (x,) = inputs
        lookup = weight.looks_up
        down = nn.functional.embedding(x, pair.down.t()) if lookup else x @ pair.down.t()
        total = output + pair.scale * (down @ pair.up.t())
        if changes is None:
            return total
        bias = bias_of(module, total)
        return total + changes * (total if bias is None else total - bias)

    return hook


def judge_all(
    asked: Mapping[str, Mapping[str, Asked | ServerError]],
    places: Mapping[str, Path],
    model: nn.Module,
    reference: Reference | None,
    base: Architecture,
    bar: Bar,
    strict: bool = False,
) -> list[Row]:
    """Judge each adapter on each server, and find which adapter answers under the name of another.

    Args:
        asked: the answers, by server and adapter; without servers, the files alone are checked.
        places: the adapters' places, by name; they are read one at a time.
        model: the base, on the meta device without a reference.
        reference: the base in float32.
        base: its shapes.
        bar: shows progress.
        strict: see `read_contents`.
    """
    rows: list[Row] = []
    twins: dict[tuple[str, str], list[str]] = {}
    known = fingerprint(model) if reference else None
    answers = [one for told in asked.values() for one in told.values()]
    greedy = any(isinstance(one, Asked) and isinstance(one.base[0], str) for one in answers)
    for name in bar(places, "judging"):
        found = read_contents(places[name], model, base, known, strict)
        whole = reference if found.complete else None
        expected = whole.expect(found.pairs, greedy=greedy) if whole else None
        word = v.FITS if found.fits else v.DOES_NOT_FIT
        rows += [] if asked else [Row(name, "", str(found), found.problems, word)]
        for url, told in asked.items():
            row = Row(name, url, str(found), found.problems)
            rows.append(judge(row, told[name], expected))
            paths = "\n".join(found.pairs)
            row.unseen += [w for w, parts in _UNSEEN.items() if any(p in paths for p in parts)]
            for other in told.keys() - {name} if expected else ():
                if judge(Row(other, url), told[other], expected).word == v.APPLIED:
                    twins.setdefault((other, url), []).append(f"`{name}`")
    for row in rows:
        same = ", ".join(twins.get((row.adapter, row.server), ()))
        if same and row.word == v.OTHER_TENSORS:
            row.says(v.ANOTHER, f"'{row.adapter}' answers as {same}")
        elif same and row.word == v.APPLIED:
            row.unseen.append(f"whether it is {same} instead, whose answers are as near")
    return rows


_UNSEEN = {
    "experts to which no token of the texts was sent": (".experts",),
    "towers that read no text": ("vision", "visual", "audio", "image"),
    "rows of `embed_tokens` whose tokens are not in the texts": ("embed_tokens",),
}
"""What short texts may not reach, by parts of the paths of modules."""
