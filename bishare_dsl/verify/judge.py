"""Judge whether a server applies an adapter, from the answers of its base and of the adapter.

The server's rounding limits detection. For example, if its base differs from the float32 base by 0.07, as
in bfloat16, effects below four times that are not judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from bishare_dsl.adapter.fingerprint import fingerprint
from bishare_dsl.models.site import Architecture
from bishare_dsl.verify import reference as ref
from bishare_dsl.verify import verdict as v
from bishare_dsl.verify.answers import Asked, Bar, distance
from bishare_dsl.verify.contents import Contents, read_contents
from bishare_dsl.verify.server import ServerError

OTHER_BASE = 0.2
"""The distance between the server's base and the reference above which their weights differ."""


def judge_all(
    asked: Mapping[str, Mapping[str, Asked | ServerError]],
    places: Mapping[str, Path],
    model: nn.Module,
    reference: ref.Reference | None,
    base: Architecture,
    bar: Bar,
) -> list[v.Row]:
    """Judge each adapter on each server, and find which adapter answers under the name of another.

    Args:
        asked: the answers, by server and adapter; without servers, the files alone are checked.
        places: the adapters' places, by name; they are read one at a time.
        model: the base, on the meta device without a reference.
        reference: the base in float32.
        base: its shapes.
        bar: shows progress.
    """
    rows: dict[tuple[str, str], v.Row] = {}
    twins: dict[tuple[str, str], list[str]] = {}
    heard: dict[tuple[str, str], ref.Located | None] = {}
    known = None
    if reference is not None:
        known = fingerprint(model)
        for server, answers in asked.items():
            told = {name: answer for name, answer in answers.items() if isinstance(answer, Asked)}
            heard |= {(name, server): reference.hear(answer) for name, answer in told.items()}
    for name in bar(places, "judging"):
        found = read_contents(places[name], model, base, known)
        expected = reference.expect(found.pairs) if reference and found.complete else {}
        if not asked:
            verdict = v.Verdict(v.FITS if found.fits else v.DOES_NOT_FIT)
            rows[name, ""] = v.Row(name, "", verdict, str(found), found.problems)
        for server, answers in asked.items():
            judged = partial(judge, name, found, heard.get((name, server)), expected)
            row = v.Row(name, server, v.Verdict(), str(found), found.problems)
            rows[name, server] = row.answered(answers[name], judged)
        for place, near in heard.items() if expected else ():
            if near and near.is_near(expected[ref.WHOLE], expected[ref.NONE]):
                twins.setdefault(place, []).append(name)
    for (name, server), row in rows.items():
        verdict = row.verdict
        same = ", ".join(f"`{other}`" for other in twins.get((name, server), ()) if other != name)
        if same and verdict.word == v.OTHER_TENSORS:
            verdict.says(v.ANOTHER, f"'{name}' answers as {same}")
        elif same and verdict.word == v.APPLIED:
            verdict.unseen.append(f"whether it is {same} instead, whose answers are as near")
    return [*rows.values()]


def judge(
    name: str,
    contents: Contents,
    heard: ref.Located | None,
    expected: Mapping[str, torch.Tensor],
    asked: Asked,
) -> v.Verdict:
    """Judge the answers.

    Args:
        name: the server's name for the adapter.
        contents: the adapter.
        heard: `Reference.hear` of the answers, if the tokens are those of a reference.
        expected: `Reference.expect` of the adapter; if empty, only an ignored adapter is detected.
        asked: the answers.
    """
    verdict = v.Verdict(
        numbers={"noise": asked.noise, "moved": distance(asked.adapter, asked.base)}
    )
    exact = asked.noise == 0
    if asked.noise > v.MOST_NOISE:
        verdict.why = v.BUSY.format(noise=asked.noise)
    elif exact and asked.adapter == asked.base:
        verdict.says(v.NOT_APPLIED, f"'{name}' answers all texts as the base, bit for bit")
    elif not expected:
        lacking = "files that fit" if not contents.complete else "the base's weights (--model)"
        moved = verdict.numbers["moved"]
        verdict.why = f"'{name}' differs from the base by {moved:.3g}; more takes {lacking}"
    elif heard is None:
        verdict.why = "the tokens of the server are not those of --model's tokenizer"
    else:
        compare(verdict, name, heard, expected)
    if asked.long is None:
        verdict.unseen.append("older tensors in a prefix cache: texts of 300 tokens are refused")
    elif exact and verdict.word in (v.APPLIED, v.UNKNOWN) and (off := distance(*asked.long)):
        why = f"a long text has {off:.2g} of what older tensors left in the prefix cache"
        verdict.says(v.STALE, f"{why}: reset that cache, or load the adapter under a new name")
    paths = "\n".join(contents.pairs)
    verdict.unseen += [what for what, words in _UNSEEN.items() if any(w in paths for w in words)]
    return verdict


def compare(
    verdict: v.Verdict,
    name: str,
    heard: ref.Located,
    expected: Mapping[str, torch.Tensor],
) -> None:
    """Find the hypothesis with the nearest answers, and complete the verdict.

    Args:
        verdict: what is known so far.
        name: the server's name for the adapter.
        heard: the server's answers to the adapter.
        expected: the answers of each hypothesis, ``(texts, vocabulary)``, with `NONE` and `WHOLE`.
    """
    errors = {words: heard.distance(row) for words, row in expected.items()}
    best = min(errors, key=lambda words: errors[words])
    near = sorted(
        (w for w in errors if errors[w] <= errors[best] + 0.2 * heard.floor), key=errors.__getitem__
    )
    effect = heard.distance(expected[ref.WHOLE], expected[ref.NONE])
    verdict.numbers |= {"floor": heard.floor, "effect": effect, "error": errors[ref.WHOLE]}
    verdict.numbers |= {f"as if {words}": errors[words] for words in near if words != ref.WHOLE}
    both = f"{errors[best]:.2g} from it, {errors[ref.WHOLE]:.2g} from the whole"
    if not effect >= ref.LEAST_EFFECT * heard.floor:  # Also if it is not a number.
        why = f"the adapter moves these answers by {effect:.2g}"
        verdict.why = (
            f"{why}, and this server's rounding is {heard.floor:.2g}: ask one that runs in float32"
        )
    elif errors[best] > ref.tolerance(heard.floor, effect):
        why = f"'{name}' matches no known way of applying this adapter ({errors[best]:.2g} from {best})"
        verdict.says(v.OTHER_TENSORS, f"{why}: an older version, another adapter, or another base")
    elif ref.WHOLE in near:
        whole, base = errors[ref.WHOLE], errors[ref.NONE]
        why = f"{whole:.2g} from it, {base:.2g} from the base, rounding {heard.floor:.2g}"
        verdict.says(v.APPLIED, f"'{name}' answers as base + adapter ({why})")
        apart = {w: heard.distance(expected[ref.WHOLE], row) for w, row in expected.items()}
        small = [w for w in apart if w.startswith(ref.WITHOUT) and apart[w] < heard.floor]
        if small:
            kinds = ", ".join(words.removeprefix(ref.WITHOUT) for words in small)
            verdict.unseen.append(f"whether {kinds} count, whose effect is below the rounding")
        verdict.unseen.append("what may be left in unused ranks of its slot")
    elif best == ref.NONE:
        verdict.says(v.NOT_APPLIED, f"'{name}' answers as the base ({both})")
    else:
        how = ", or ".join(near)
        verdict.says(v.AS_IF, f"'{name}' answers as the adapter {how} ({both})")
    if heard.floor > OTHER_BASE:
        verdict.why += (
            f"; the base is {heard.floor:.2g} from --model: it is another base, or quantised"
        )


_UNSEEN = {
    "experts to which no token of the texts was sent": (".experts",),
    "towers that read no text": ("vision", "visual", "audio", "image"),
    "rows of `embed_tokens` whose tokens are not in the texts": ("embed_tokens",),
}
"""What short texts may not reach, by parts of the paths of modules."""
