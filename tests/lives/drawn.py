"""What lives are drawn from: specs that `fitting_specs` leaves out, and batches that models read."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from bishare_dsl import parse_spec
from bishare_dsl.language import spec_text
from bishare_dsl.models.inspect import inspect_model
from bishare_dsl.testing.fitting_specs import fits, fitting_specs
from tests.support.families import TINY_FAMILIES, TINY_MIXTURES, TINY_TOWERS, tiny_inputs
from tests.support.quantised import Int8Linear
from tests.support.small_models import small_models

# Tensors of one share in another: read where they are read, written where they are read, of the layer above, in both
# places of a term; keys that are names, cases and powers.
REFERENCES = (
    (
        "target q_proj, k_proj share a A per layer B per module rank 2 where q_proj "
        "share b A per layer is a.A B per module rank 2 where k_proj"
    ),
    (
        "target q_proj, v_proj share a A per model B per module rank 2 where v_proj "
        "share b A is a.A B per module rank 2 where q_proj init B zeros scale 0.5"
    ),
    (
        "target up_proj, down_proj share up per layer rank 2 where up_proj "
        "share down A per module B is up.A rank 2 where down_proj init A zeros"
    ),
    (
        "target up_proj, down_proj share up per layer rank 2 where up_proj via SS "
        "share down A per module B per layer - 1 is up.A rank 2 where down_proj and layer > 0 init A zeros"
    ),
    (
        "target gate_proj, up_proj, down_proj share up per kind rank 2 where gate_proj, up_proj "
        "share down A per module B per (up_proj if layer == 0 else gate_proj) is up.A rank 2 where down_proj init A zeros"
    ),
    "target attention_inputs share same A per layer, kind B is A core per module rank 2 where in == out via Core",
    "let late = layer >= 1 target attention_inputs, mlp_ups share a per late, kind rank 2 ** (1 + late)",
    "target attention_inputs, mlp_ups share a per match layer { 0: 7; else: 3 }, kind rank 2 via KE(size = 3) then Core",
)

# Each holds what no other does: starts from the base's weights, what is stored compactly, what is seen in
# one tower, what a batch has no row of, experts whose pools differ.
TEXTS = (
    "target attention_inputs, mlp_ups share a per module rank 2 init A svd, B svd",
    "target mlp_downs share a per module rank 2 via Core init A svd_vectors, B svd_scaled freeze A, B",
    "target q_proj share a per model rank 2 via VectorBank(vectors = 6, length = 4, top_k = 2) start nonzero",
    "target attention_inputs train norms share a per layer, kind rank 2",
    "target tower == vision share a per module rank 2",
    "target tower == vision, tower == language share a per tower rank 2 via SS gain out init 1",
    'target kind "*pos*" share a per module rank 2',
    "target wpe, attention_inputs share a per module rank 2",
    "target embeddings, heads share a per module rank 2",
    "target (gate_proj and expert in 0..1), (down_proj and expert != none) share a per expert rank 2 via SS",
    "target (expert == 0), (down_proj and expert != none) share a per layer, expert % 2 rank 2 via KE(size = 4)",
    "target attention_inputs, mlp_ups share a per layer rank 2 via Experts(count = 2)",
)

FAMILIES = (*TINY_FAMILIES, *TINY_MIXTURES, *TINY_TOWERS)


def specs(architecture):
    """Draw the texts of specs that fit: over the whole language, and now and then a written one."""
    choices = [fitting_specs(architecture)] * 2
    for texts in (TEXTS, REFERENCES):
        written = [spec for spec in map(_parsed, texts) if fits(spec, architecture)]
        if written:
            choices.append(st.sampled_from(written))
    return st.one_of(choices).map(spec_text)


def _parsed(text):
    return parse_spec(f"spec t {text}")


class Base:
    """A base in which nothing is left to chance in training."""

    def __init__(self, family, model):
        self.family, self.model = family, model
        self.architecture = inspect_model(model)
        self.quantised = any(isinstance(module, Int8Linear) for module in model.modules())
        self.tied = model.config.tie_word_embeddings
        for module in model.modules():
            for name, value in vars(module).items():
                if isinstance(value, float) and ("dropout" in name or name == "p"):
                    setattr(module, name, 0.0)

    def at_tables(self, plan):
        """Tell whether an adapter has something at a table of tokens."""
        tables = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        modules = dict(self.model.named_modules())
        terms = [path for s in plan.sites if plan.terms_of[s.path] for path in s.paths]
        whole = [path.rpartition(".")[0] for trained in plan.trained for path in trained.paths]
        return any(modules.get(path) is table for path in terms + whole for table in tables)

    def __repr__(self):
        return f"{self.family}{', quantised' * self.quantised}{', tied' * self.tied}"


@st.composite
def bases(draw, families=FAMILIES):
    family = draw(st.sampled_from(families))
    return Base(family, draw(small_models(families=[family])))


class Batch(dict[str, Tensor]):
    """What a model reads, by keyword."""

    way: str

    def __repr__(self):
        return f"{self.way}: { {name: tuple(value.shape) for name, value in self.items()} }"


@st.composite
def batches(draw, model):
    """Draw a batch of one row to three; images in uneven rows; with and without a mask."""
    inputs = Batch(tiny_inputs(model, seed=draw(st.integers(0, 3))))
    image = getattr(model.config, "image_token_id", None)
    ways = [
        "as it comes",
        "as it comes",
        "one row",
        "no mask",
        *["uneven"] * 2 * (image is not None),
    ]
    inputs.way = draw(st.sampled_from(ways))
    if inputs.way == "no mask":
        inputs.pop("attention_mask", None)
    elif inputs.way == "uneven":
        # Both images are in one row; the others have words where it has an image.
        ids = inputs["input_ids"]
        both = torch.cat([ids[0], ids[1]])
        words = torch.where(both == image, torch.full_like(both, 5), both)
        rows = [both, words, words.flip(0)][: draw(st.integers(2, 3))]
        ids = torch.stack(draw(st.permutations(rows)))
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = (ids == image).int()
    elif inputs.way == "one row":
        for name, value in inputs.items():  # Of patches, which have no rows, the first half.
            inputs[name] = value[: len(value) // 2]
    return inputs
