"""Read adapters, compute what a server with them should answer, and judge its answers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

from bishare_dsl.convert.effective import check_linear, effective_factors, scale_changes
from bishare_dsl.convert.peft_config import TENSORS
from bishare_dsl.diagnostics import BishareError, Problem
from bishare_dsl.diagnostics.codes import verify as codes
from bishare_dsl.diagnostics.codes.adapter import NO_WEIGHT
from bishare_dsl.folder.files import is_peft
from bishare_dsl.folder.fingerprint import Fingerprint, base_changes, fingerprint
from bishare_dsl.hub import adapter_folder
from bishare_dsl.loading import read_fitting
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.models.site import Architecture
from bishare_dsl.models.weights import Weight, bias_of
from bishare_dsl.plan import Plan
from bishare_dsl.verify.judge import (
    ADAPTER,
    BASE,
    UNSCALED,
    Expected,
    Verdict,
    Word,
    judge,
)
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
        ranks = sorted({len(pair.down) for pair in self.pairs.values()})
        if ranks:
            return f"{len(self.pairs)} modules, rank {' and '.join(map(str, ranks))}"
        if self.fits:
            return "no low-rank update, or a DoRA without weights"
        return "they do not fit"


def read_contents(
    place: str | os.PathLike[str],
    model: nn.Module,
    base: Architecture,
    known: Fingerprint | None = None,
    strict: bool = False,
) -> Contents:
    """Read a LoRA of PEFT or an adapter of bishare, and match it with the modules of a model.

    Args:
        place: the adapter's folder or Hub id; ``LIBRARY#NAME`` for an adapter of a library.
        model: the base, which may be on the meta device unless the adapter is a DoRA.
        base: its shapes, with its name in messages.
        known: its fingerprint, if its weights are here.
        strict: whether an adapter of another base does not fit.

    Returns:
        What was found; an error of reading is one of its problems.
    """
    others: list[str] = []
    try:
        folder = adapter_folder(place)
        stored, fitting = read_fitting(folder, base, model)
        plan = stored.plan
        tensors = stored.tensors()
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
    for problem in base_changes(stored.config.fingerprint, known):
        problems.append(replace(problem, severity="error") if strict else problem)
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
        if not len(down) and changes is None:
            continue
        for path in site.paths:
            # A tied embedding uses the transposed update of the head.
            swapped = maps[path].looks_up and not maps[site.path].looks_up
            a, b = (up, down) if swapped else (down, up)
            pairs[path] = Pair(a, b.t() / scale, scale, changes)
    return pairs


def _zeros(pairs: Mapping[str, Pair]) -> Iterator[Problem]:
    """Find modules whose update is zero."""
    zero = [
        path
        for path, pair in pairs.items()
        if pair.changes is None and not (pair.down.any() and pair.up.any())
    ]
    if zero:
        problem = codes.ADDS_NOTHING(count=len(zero), total=len(pairs), path=zero[0])
        yield replace(problem, severity="warning") if len(zero) < len(pairs) else problem


Pairs = Mapping[str, Pair]


def ways(pairs: Pairs) -> dict[str, Pairs]:
    """Return the updates that an engine may apply of an adapter, by a description."""
    updates: dict[str, Pairs] = {BASE: {}, ADAPTER: pairs}
    if any(pair.scale != 1 for pair in pairs.values()):
        updates[UNSCALED] = {path: replace(pair, scale=1.0) for path, pair in pairs.items()}
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
        self.model = model
        self.tokenizer = tokenizer
        self.texts = texts
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

    @cached_property
    def _greedy_base(self) -> list[str]:
        return self.greedy({})

    @torch.no_grad()
    def answer(self, pairs: Pairs) -> torch.Tensor:
        """Return the log-probabilities of the next token with an update, ``(texts, vocabulary)``."""
        ids = self._ids.to(self.model.device)
        mask = self._mask.to(self.model.device)
        with self._added(pairs):
            logits = self.model(input_ids=ids, attention_mask=mask.long()).logits
        last: torch.Tensor = logits[torch.arange(len(logits)), self._last]
        return last.float().log_softmax(-1)

    def greedy(self, pairs: Pairs) -> list[str]:
        """Return the likeliest continuation of each text with an update, at most up to its end."""
        how = GenerationConfig(max_new_tokens=GREEDY_TOKENS, do_sample=False, pad_token_id=0)
        how.eos_token_id = self.tokenizer.eos_token_id
        generate: Any = self.model.generate
        continuations = []
        with self._added(pairs):
            for row, last in zip(self._ids, self._last, strict=True):
                ids = row[None, : last + 1].to(self.model.device)
                new = generate(ids, generation_config=how, attention_mask=torch.ones_like(ids))
                continuations.append(new[0, last + 1 :])
        texts = self.tokenizer.batch_decode(continuations, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def expect(self, pairs: Pairs, *, greedy: bool = False) -> Expected:
        """Return the answers of each of the `ways`, and the greedy texts if wanted."""
        answers = {}
        for name, update in ways(pairs).items():
            answer = self.answer(update) if update else self.base
            answers[name] = answer.cpu().numpy()
        texts: list[tuple[str, str]] = []
        if greedy:
            texts = list(zip(self._greedy_base, self.greedy(pairs), strict=True))
        return Expected(self._columns, answers, texts)

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
        counts = Counter(texts)
        names = self.tokenizer.get_vocab()
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
) -> list[Verdict]:
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
    known = fingerprint(model) if reference else None
    greedy = any(map(_is_greedy, asked.values()))
    verdicts: list[Verdict] = []
    for name in bar(places, "judging"):
        contents = read_contents(places[name], model, base, known, strict)
        if not asked:
            word = Word.FITS if contents.fits else Word.DOES_NOT_FIT
            verdicts.append(Verdict(name, "", str(contents), contents.problems, word))
            continue
        expected = None
        if reference is not None and contents.complete:
            expected = reference.expect(contents.pairs, greedy=greedy)
        not_reached = _not_reached(contents.pairs)
        for url, answers in asked.items():
            verdict = Verdict(name, url, str(contents), contents.problems)
            verdict = judge(verdict, answers[name], expected)
            verdict.not_tested.extend(not_reached)
            verdicts.append(verdict)
    for url, answers in asked.items():
        _name_equals([v for v in verdicts if v.server == url], answers)
    strangers = [verdict for verdict in verdicts if verdict.word == Word.ANOTHER_ADAPTER]
    if reference is not None and strangers and len(places) > 1:
        _name_strangers(strangers, asked, places, model, reference, base, bar)
    return verdicts


def _is_greedy(answers: Mapping[str, Asked | ServerError]) -> bool:
    """Return whether a server gives texts instead of log-probabilities."""
    return any(isinstance(one, Asked) and isinstance(one.base[0], str) for one in answers.values())


def _name_equals(verdicts: Sequence[Verdict], answers: Mapping[str, Asked | ServerError]) -> None:
    """Say of applied adapters on a server which others give the same answers."""
    groups: dict[str, list[str]] = {}
    keys: dict[str, str] = {}
    for name, one in answers.items():
        if isinstance(one, Asked):
            keys[name] = repr(one.adapter)
            groups.setdefault(keys[name], []).append(name)
    for verdict in verdicts:
        if verdict.word != Word.APPLIED:
            continue
        others = [f"`{name}`" for name in groups[keys[verdict.adapter]] if name != verdict.adapter]
        if others:
            verdict.not_tested.append(
                f"whether it is {', '.join(others)} instead, whose answers are the same"
            )


def _name_strangers(
    strangers: Sequence[Verdict],
    asked: Mapping[str, Mapping[str, Asked | ServerError]],
    places: Mapping[str, Path],
    model: nn.Module,
    reference: Reference,
    base: Architecture,
    bar: Bar,
) -> None:
    """Find the adapter of the table that answers under another name."""
    twins: dict[tuple[str, str], list[str]] = {}
    for name in bar(places, "naming the others"):
        contents = read_contents(places[name], model, base)
        if not contents.complete:
            continue
        expected = reference.expect(contents.pairs)
        for verdict in strangers:
            place = verdict.adapter, verdict.server
            answers = asked[verdict.server][verdict.adapter]
            if name != verdict.adapter:
                other = judge(Verdict(verdict.adapter, verdict.server), answers, expected)
                if other.word == Word.APPLIED:
                    twins.setdefault(place, []).append(f"`{name}`")
    for verdict in strangers:
        names = twins.get((verdict.adapter, verdict.server))
        if names:
            why = f"'{verdict.adapter}' answers as {', '.join(names)}"
            verdict.set(Word.ANOTHER_ADAPTER, why)


_NOT_REACHED = {
    "experts to which no token of the texts was sent": (".experts",),
    "towers that read no text": ("vision", "visual", "audio", "image"),
    "rows of `embed_tokens` whose tokens are not in the texts": ("embed_tokens",),
}
"""What short texts may not reach, by parts of the paths of modules."""


def _not_reached(paths: Iterable[str]) -> list[str]:
    """Return what short texts may not reach of an adapter of these modules."""
    joined = "\n".join(paths)
    return [words for words, parts in _NOT_REACHED.items() if any(part in joined for part in parts)]
