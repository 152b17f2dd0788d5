"""Remedies for names, patterns and values that a model or a spec does not have."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bishare_dsl.advice.options import unknown_transform
from bishare_dsl.advice.question import Question, Remedy, listed
from bishare_dsl.diagnostics import near_names
from bishare_dsl.diagnostics.words import meaning_of
from bishare_dsl.models.parts import kinds_called
from bishare_dsl.plan.facts import UnknownPattern, UnknownValue
from bishare_dsl.plan.in_full import PARTS as TRAINED_PARTS
from bishare_dsl.spec import ATTRIBUTES, Ref, globs_of
from bishare_dsl.spec.facts import UnknownName

_MOST_LISTED = 16
_PATHS = "a path reads `model.layers.0.self_attn.q_proj`, and in a pattern `*` is any of it"
# What is said of a name where neither a near name nor the table helps.
_EXPECTED = {
    "file": "a path starts at the folder of the file that says `use`",
    "key": "a key has attributes of a module, such as `layer` and `kind`",
    "number": "a number stands here, or a param",
    "rank": "a rank is a number, or a param that is declared above",
    "param": "compare a param with what it may be",
}


def unknown_name(fact: UnknownName, question: Question) -> Iterator[Remedy]:
    """Yield what a name may be meant as: the same in other letters, a word of other programs, a near name."""
    name = fact.name
    place = fact.place
    for same in sorted(fact.valid):
        if same.lower() == name.lower() and same != name:
            yield question.instead(same)
    if place == "file" and f"{name}.share" in fact.valid:
        yield question.exactly(f'"{name}.share"', f'did you mean `"{name}.share"`?')
    if name.isdecimal():
        yield question.exactly(name, f"a number has no quotes: `{name}`")
    if place == "transform":
        yield from unknown_transform(name, question)
    elif place == "kind":
        yield from _of_modules(fact, question)
    elif place == "train":
        yield from _of_trained(fact, question)
    elif place == "key" and name in ATTRIBUTES:
        yield Remedy("parts of a key have commas between")
    else:
        yield from _table(place, name, question)
        yield from _near(fact, question)
    if place == "param" and question.problem.code == "BS207":
        if fact.valid:
            yield Remedy(f"there are {listed(sorted(fact.valid))}")
        declared = f"`param {name} = 8` below `spec`"
        yield Remedy(f"declare it, {declared}, and write its name for a number")
    if place == "number" or place == "rank":
        yield from _table("number", name, question)
    if 0 < len(fact.valid) <= _MOST_LISTED and place in (
        "init",
        "name",
        "function",
        "share",
        "transform",
    ):
        yield Remedy(f"there are {listed(sorted(fact.valid))}")
    if place in _EXPECTED:
        yield Remedy(_EXPECTED[place])


def _table(place: str, name: str, question: Question) -> Iterator[Remedy]:
    """Yield what the table says of a word."""
    meaning = meaning_of(place, name)
    if meaning is None:
        return
    if meaning.instead is None:
        yield Remedy(meaning.help)
        return
    yield question.exactly(meaning.instead, meaning.help)


def _near(fact: UnknownName, question: Question) -> Iterator[Remedy]:
    """Yield the nearest valid names, each of which is tried."""
    near = near_names(fact.name, fact.valid)
    for name in near[:3]:
        yield question.instead(name)


def _of_modules(fact: UnknownName, question: Question) -> Iterator[Remedy]:
    """Yield what a name in a condition may be meant as."""
    name = fact.name
    sites = question.sites
    if sites is None:
        yield from _table("kind", name, question)
        yield from _near(fact, question)
        return
    model = sites.architecture
    if name in sites.params:
        yield from _compared(name, sites.params[name], question)
    elif name in ATTRIBUTES:
        yield Remedy(f"`{name}` has values, which a condition compares by `==`, `<` or `in`")
    if name in {site.parent for site in model.sites}:
        yield question.exactly(
            f"parent {name}", f"write `parent {name}` for the linear layers in it"
        )
    if name in ("expert", "experts"):
        if any(site.expert is not None for site in model.sites):
            yield question.exactly("expert != none", "write `expert != none`")
        else:
            yield Remedy(f"{model.name} has no experts")
    if any(name in site.kinds for site in model.outside):
        yield Remedy(f"it is in no layer: name it in `target`, as in `target {name}`")
    yield from _called_elsewhere(name, question)
    if not name.isidentifier():
        yield from _globs(name, "kind", question)
    yield from _table("kind", name, question)
    yield from _near(fact, question)
    if any(f".{name}." in f".{path}." for other in model.others for path in other.paths):
        yield Remedy(f"shares adapt linear layers; `train {name}` trains it in full")
    if model.sites:
        kinds = sorted(sites.kinds)
        if len(kinds) <= _MOST_LISTED:
            yield Remedy(f"there are {listed(kinds)}; or declare it above by `let`")
        return
    yield from _without_blocks(name, question)


def _without_blocks(name: str, question: Question) -> Iterator[Remedy]:
    """Yield the names of a model that has no linear layers in blocks."""
    model = question.architecture
    if model is None:
        return
    outside = {kind for site in model.outside for kind in site.kinds}
    for near in near_names(name, outside)[:3]:
        yield question.instead(near)
    few = ", ".join(f'`path "{site.path}"`' for site in model.outside[:4])
    lacks = f"{model.name} has no linear layers in numbered blocks"
    yield Remedy(f"{lacks}: name its modules, such as {few}")


def _compared(name: str, value: object, question: Question) -> Iterator[Remedy]:
    """Yield a condition that compares a param, which alone is none."""
    text = f"{name} == {value}"
    if isinstance(value, int):
        text = f"layer >= {name}"
    elif question.sites is not None and value in question.sites.kinds:
        text = f"kind == {name}"
    help = f"`{name}` is a param, which a condition compares: `{text}`"
    yield question.exactly(text, help)


def _called_elsewhere(name: str, question: Question) -> Iterator[Remedy]:
    """Yield the modules of this model that other families of models call so."""
    if question.architecture is None:
        return
    kinds = kinds_called(name, question.architecture.sites)
    if not kinds or kinds == [name]:
        return
    text = ", ".join(kinds)
    if len(kinds) > 1 and {"all_of", "any_of", "negated", "condition"} & {*question.loc}:
        text = f"({' or '.join(kinds)})"
    yield question.exactly(text, f"in {question.architecture.name} this is `{text}`")


def _of_trained(fact: UnknownName, question: Question) -> Iterator[Remedy]:
    """Yield what a name in `train` may be meant as."""
    name = fact.name
    parts = f"norms, biases, heads and embeddings are {listed(TRAINED_PARTS)}"
    model = question.architecture
    if model is None:
        yield Remedy(parts)
        return
    if name in model.kinds:
        other = "`target` names; `train` takes all other parameters"
        yield Remedy(f"`{name}` is a linear layer, which {other}")
    meaning = meaning_of("train", name)
    part = name
    if meaning is not None and meaning.instead is not None:
        part = meaning.instead
    if part in TRAINED_PARTS and question.sites is not None:
        if part != name:
            yield question.instead(part, f"did you mean `{part}`?")
        yield Remedy(f"`{part}` is the word, and {model.name} lacks these: leave it out")
    yield from _table("train", name, question)
    yield from _near(fact, question)
    yield Remedy(parts)


def unknown_pattern(fact: UnknownPattern, question: Question) -> Iterator[Remedy]:
    """Yield what a pattern that matches nothing may be meant as."""
    attribute = fact.attribute
    pattern = fact.pattern
    if question.in_key:
        yield Remedy("parts of a key have commas between")
    spec = question.spec
    if spec is not None and pattern in {let.name for let in spec.lets}:
        help = f"`{pattern}` stands alone: leave `{attribute}` before it out"
        yield question.exactly(pattern, help)
    elif spec is not None and pattern in spec.values:
        text = f"{attribute} == {pattern}"
        yield question.exactly(text, f"`{pattern}` is a param, which is compared: `{text}`")
    for near in near_names(pattern, fact.values)[:1]:
        yield question.exactly(f'{attribute} "{near}"', f"did you mean `{near}`?")
    yield from _globs(pattern, attribute, question)
    if attribute == "kind":
        yield from _called_elsewhere(pattern, question)
    if not question.architecture or not question.architecture.sites:
        yield from _without_blocks(pattern, question)
    if len(fact.values) <= _MOST_LISTED:
        yield Remedy(f"there are {listed(sorted(fact.values))}")
    yield Remedy(_PATHS)


def _globs(pattern: str, attribute: str, question: Question) -> Iterator[Remedy]:
    """Yield globs and names for a regular expression, or for quotes around a list."""
    texts: list[str] = []
    globs = globs_of(pattern)
    if globs:
        texts.append(", ".join(f'{attribute} "{glob}"' for glob in globs))
    names = re.split(r"[,|]\s*", pattern.strip("^$()"))
    if len(names) > 1 and all(name.isidentifier() for name in names):
        texts.append(", ".join(names))
    if attribute == "path":
        inside = pattern.strip("^$*")
        dot = "." if inside[-1:].isdecimal() else ""
        texts.append(f'path "*{inside}{dot}*"')
    elif "*" in pattern or "?" in pattern:
        texts.append(f'{attribute} "{pattern}"')
    for text in texts:
        yield question.exactly(text, f"write `{text}`")


def unknown_value(fact: UnknownValue, question: Question) -> Iterator[Remedy]:
    """Yield what a value may be meant as that an expression never has."""
    value = fact.value
    subject = fact.subject
    arm = question.problem.code == "BS306"
    if arm:
        yield from _table("arm", value, question)
    name = subject.ref if isinstance(subject, Ref) else ""
    yield from _table("compared", name, question)
    for near in near_names(value, fact.values)[:3]:
        yield question.instead(near)
    sites = question.sites
    if name == "kind" and sites is not None:
        if any(site.parent == value for site in sites.architecture.sites):
            yield Remedy(f"the modules in it have `parent == {value}`")
        for kind in kinds_called(value, sites.architecture.sites):
            yield question.instead(kind, f"in {sites.architecture.name} this is `{kind}`")
    if name == "path":
        yield Remedy(f'a path is matched by a pattern: `path "*{value}*"`')
    if len(fact.values) == 1 and sites is not None:
        only = next(iter(fact.values))
        yield Remedy(f"all modules of {sites.architecture.name} have `{only}` there")
    if arm and sites is not None and value in sites.kinds:
        yield Remedy(f"leave this arm out, or let `target` and `where` have `{value}`")
    if len(fact.values) <= _MOST_LISTED:
        yield Remedy(f"there are {listed(sorted(fact.values))}")
