"""Find the parameters of the base that a spec trains in full."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from math import prod

from bishare_dsl.diagnostics import Problem
from bishare_dsl.diagnostics.codes import plan as codes
from bishare_dsl.models.parts import parts_outside
from bishare_dsl.models.site import Parameter, Site
from bishare_dsl.plan.facts import NothingSelected
from bishare_dsl.plan.names import owner, short_path
from bishare_dsl.plan.plan import Tensor, Trained
from bishare_dsl.plan.select import Sites
from bishare_dsl.plan.vocabulary import Vocabulary
from bishare_dsl.spec import ATTRIBUTES, Ref, Selection, Spec
from bishare_dsl.spec.evaluate import Scope
from bishare_dsl.spec.site_sets import SiteSets
from bishare_dsl.spec.walk import mentions

TRAIN = "train"
"""The share of these parameters' tensors, and the beginning of their names."""
NONE = Selection.model_construct(include=(Ref.model_construct(ref="none"),))
"""``train none`` trains nothing in full, not even a new head."""
_NORM = re.compile(r"norm|(^|_)ln(_|\d|$)", re.IGNORECASE)
PARTS = ("norms", "biases", "heads", "embeddings")


def train(
    spec: Spec, sites: Sites, adapted: Collection[str]
) -> tuple[list[Trained], list[Tensor], list[Problem]]:
    """Find the parameters that a spec trains in full, and the problems of its `train` statement.

    A task's head is trained by default, with a note.

    Args:
        spec: the spec.
        sites: the model's sites.
        adapted: the paths of modules with terms.
    """
    everything = sites.architecture.others
    chosen: list[Parameter] = []
    problems: list[Problem] = []
    if spec.train is not None and spec.train != NONE:
        chosen, problems = _selected(spec, spec.train, sites)
        for other in chosen:
            if also := next((p for p in map(_weight_of, other.paths) if p in adapted), None):
                problems.append(codes.TRAINED_TWICE(path=also, loc=("train",)))
    if spec.train != NONE:
        head = {path for path in sites.architecture.head if _weight_of(path) not in adapted}
        fresh = [p for p in everything if p.path in head and p not in chosen]
        if fresh:
            size = sum(other.size for other in fresh)
            modules = ", ".join(dict.fromkeys(f"`{_module(other.path)}`" for other in fresh))
            problems.append(codes.FRESH_HEAD(what=modules, size=size, loc=("train",)))
        chosen = [p for p in everything if p in chosen or p in fresh]
    short = [short_path(other.path) for other in chosen]
    trained = []
    tensors = []
    for other, name in zip(chosen, short, strict=True):
        name = f"{TRAIN}.{name if short.count(name) == 1 else other.path}"
        shape = other.shape
        trained.append(Trained(parameter=other.path, tied=other.tied, shape=shape, tensor=name))
        rows = shape[0] if len(shape) > 1 else 1
        tensors.append(
            Tensor(
                name=name,
                share=TRAIN,
                shape=(rows, prod(shape) // rows),
                init="base",
                fan_in=1,
                owner=owner(other.paths),
            )
        )
    return trained, tensors, problems


def _selected(
    spec: Spec, selection: Selection, sites: Sites
) -> tuple[list[Parameter], list[Problem]]:
    """Find the parameters that a selection selects. Each condition must match at least one."""
    others = sites.architecture.others
    places = SiteSets([_scope(sites, other) for other in others], spec.lets)
    vocabulary = _vocabulary(sites, places)
    model = sites.architecture.name
    mentioned = list(mentions(selection, None, (TRAIN,), domain="parameters"))
    problems = [
        codes.TRAINS_SITE(kind=mention.part.ref, loc=mention.loc)
        for mention in mentioned
        if mention.loc[:-1] == (TRAIN, "include")
        and isinstance(mention.part, Ref)
        and mention.part.ref in {*sites.architecture.kinds} - sites.lets
    ]
    problems += vocabulary.problems(mentioned)
    if not problems:
        for mention in mentioned:
            problems += vocabulary.without_value(mention, places.all)
    if problems:
        return [], problems
    for side in ("include", "exclude"):
        for i, part in enumerate(getattr(selection, side)):
            if not places.partition(part)[0]:
                loc = (TRAIN, side, i)
                words = sites.words_of(Selection.model_construct(include=(part,)))
                linear = [kind for kind in sites.architecture.kinds if kind in words]
                if linear:
                    problems.append(codes.TRAINS_SITE(kind=linear[0], loc=loc))
                    continue
                fact = NothingSelected(Selection.model_construct(include=(part,)))
                problem = codes.NO_SUCH_SITE(what="this condition", model=model, loc=loc, fact=fact)
                problems.append(problem)
    if problems:
        return [], problems
    chosen = [others[i] for i in sorted(places.select(selection, (TRAIN,)))]
    if not chosen:
        fact = NothingSelected(selection)
        problems.append(codes.COVERS_NOTHING(what="`train`", model=model, loc=(TRAIN,), fact=fact))
    words = sites.words_of(selection)
    for other in chosen:
        kinds = {path: _module(path).rpartition(".")[2] for path in other.paths}
        words_for = {p: {p, kind, *parts_outside(kind), *_parts(p)} for p, kind in kinds.items()}
        problems += sites.partly_named(TRAIN, words, kinds, words_for, "trains it for all of them")
    return chosen, problems


def _vocabulary(sites: Sites, places: SiteSets) -> Vocabulary:
    """Create the vocabulary of `train`."""
    architecture = sites.architecture
    modules = {_module(path).rpartition(".")[2] for p in architecture.others for path in p.paths}
    return Vocabulary(
        architecture.name,
        places,
        modules | {*architecture.kinds},
        {*PARTS} - sites.lets,
        {*ATTRIBUTES, *sites.params, *sites.lets},
        "train",
    )


def _scope(sites: Sites, other: Parameter) -> Scope:
    """Create the scope of a parameter, with its path and the attributes of its module."""
    kinds = {_module(path).rpartition(".")[2] for path in other.paths}
    site = Site.outside(_module(other.path) or other.path, 1, 1)
    in_head = any("heads" in parts_outside(word) for p in other.paths for word in p.split("."))
    played = {
        **{part: part in _parts(other.path) for part in ("norms", "biases")},
        **dict.fromkeys(("heads", "embeddings"), False),
        **dict.fromkeys((part for kind in kinds for part in parts_outside(kind)), True),
        "heads": in_head or other.path in sites.architecture.head,
    }
    if site.layer is not None:
        played |= {"heads": False, "embeddings": False}
    alias = dict.fromkeys(kinds - {site.kind}, True)
    return sites.scope_of(site, played | alias, {"path": other.path, "module": other.path})


def _parts(path: str) -> Iterator[str]:
    """Yield the groups of a parameter, from its name and its module's name."""
    module, _, name = path.rpartition(".")
    if _NORM.search(module.rpartition(".")[2]):
        yield "norms"
    if name == "bias" or name.endswith("_bias"):
        yield "biases"


def _module(path: str) -> str:
    return path.rpartition(".")[0]


def _weight_of(path: str) -> str | None:
    """Return the module if the parameter is its weight, or None."""
    module, _, name = path.rpartition(".")
    return module if name == "weight" else None
