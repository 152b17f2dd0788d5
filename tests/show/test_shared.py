import pytest

from bishare_dsl import spec as m
from bishare_dsl.api import plan_spec
from bishare_dsl.language import parse_spec
from bishare_dsl.models import preset
from bishare_dsl.plan.plan import Pool, Tensor, Term, Trained
from bishare_dsl.show.rows import roles, shares
from bishare_dsl.show.shared import shared_table, sharing_report

pytestmark = pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")

PER, ARMS = (
    "share a per module rank 8 ",
    "share a per module rank match layer { 0..3: 4; else: 8 } ",
)
OWN = "share a per layer rank 8 share c per layer rank 8"
BOTH = f"share b per kind rank 8 ? {PER}"
# A field of a spec, a field of a plan, a text, and two parts of it that differ in both.
PAIRS = [
    ("target", "site", f"target q_proj, ? {PER}", "k_proj", "o_proj"),
    ("target", "site", f"target q_proj except layer in ? {PER}", "0..3", "28..31"),
    ("target", "site", f"target q_proj, ? {PER}", "lm_head", "embed_tokens"),
    ("where", "site", f"{PER} where ?", "q_proj", "v_proj"),
    ("where", "site", f"{PER} where ?", "layer in 0..7", "layer in 1..8"),
    ("where", "site", f"{PER} where layer > 15 and ? or layer < 16 and not ?", "q_proj", "v_proj"),
    ("per", "members", "share a per ? rank 8", "kind", "layer % 2"),
    ("per", "members", "share a per ? rank 8", "layer // 4", "layer % 8"),
    ("per", "members", "share a per ? rank 8", "layer", "layer // 2, kind"),
    ("per", "members", "share a per ?, kind rank 8", "min(layer, 31 - layer)", "layer // 2"),
    ("keys", "role", "share a ? rank 8", "A per layer B per kind", "A per kind B per layer"),
    ("keys", "key", "share a ? rank 8", "A per adapter B per model", "A per model B per adapter"),
    ("references", "tensors", f"{OWN} share b A is ? B per layer rank 8", "a.A", "c.A"),
    (
        "references",
        "tensors",
        f"{OWN} share b A per ? is a.A B per layer rank 8",
        "layer",
        "31 - layer",
    ),
    ("rank", "rank", "share a per module rank match kind { ?: 8; else: 4 }", "q_proj", "v_proj"),
    ("rank", "rank", "share a per module rank 8 if layer ? 16 else 4", "<", ">="),
    ("rank", "rank", "share a per module rank ?", "1 + layer", "32 - layer"),
    ("via", "transform", f"{PER} via ?(blocks = 4)", "Grid", "BlockDiagonal"),
    ("via", "options", f"{ARMS} via KE(size = ?)", "128", "32 * rank"),
    ("freeze", "trainable", f"{PER} freeze ?", "A", "B init A zeros, B normal"),
    ("rank", "amount", f"{PER} gain rank init ?", "1", "-1"),
    ("rank", "amount", f"{ARMS} gain rank init ?", "1", "4 / rank"),
    ("out", "tensors", f"{PER} gain ? init 1", "rank", "out"),
    ("gain", "shape", f"{PER} gain ?", "rank init 1", "rank init 1, out init 1"),
    ("init", "init", f"init A ? {PER}", "normal", "uniform"),
    ("init", "init", f"{PER} init A ?", "normal", "zeros, B normal"),
    ("init", "init", f"{PER} via KE init B normal, ? zeros", "K_A", "K_B"),
    ("init", "init", f"{PER} magnitude per kind init mu ? start nonzero", "normal", "uniform"),
    ("nonzero_start", "like", f"{PER} init A svd, B svd ?", "", "start nonzero"),
    ("alpha", "scale", f"alpha ? {PER}", "8", "16"),
    ("alpha", "scale", BOTH.replace("?", "alpha ?"), "8", "16"),
    ("scale", "scale", f"alpha 16 ? {PER}", "", "scale 1"),
    ("dropout", "dropout", f"{BOTH} ?", "dropout 0.1", ""),
    ("shares", "share", f"{PER} magnitude per module ?", "", "plain"),
    ("where", "site", f"{PER} magnitude per module where ?", "q_proj", "v_proj"),
    ("per", "members", f"{PER} magnitude per ?", "kind", "layer % 2"),
    ("train", "parameter", f"train norms and layer != none and layer ? 8 {PER}", "<", ">="),
    ("train", "parameter", "target none train ?", "norms", "norm"),
]
# They follow from the others, or from the model, or are names.
DERIVED = {"name", "fan_in", "owner", "rows", "linear", "tied", "tensor"}
NAMES = {"params", "lets", "defaults"}


def spec_of(text):
    head = "" if "target" in text else "target q_proj, v_proj "
    return parse_spec(f"spec s {head}{text}".replace("target none ", ""))


def plan(text):
    return plan_spec(spec_of(text), preset("smollm2-135m"))


def test_each_field_that_changes_an_adapter_has_a_pair():
    of_spec, of_plan, *_ = zip(*PAIRS, strict=True)
    parts = (m.Spec, m.Share, m.Gain)
    assert {*of_spec} | NAMES | DERIVED >= {name for part in parts for name in part.model_fields}
    records = (Tensor, Term, Pool, Trained)
    assert {*of_plan} | DERIVED == {name for part in records for name in part.model_fields}


@pytest.mark.parametrize(("of_spec", "of_plan", "text", "one", "other"), PAIRS)
def test_specs_that_differ_are_told_back_differently(of_spec, of_plan, text, one, other):
    specs = [spec_of(text.replace("?", part)) for part in (one, other)]
    plans = [plan_spec(spec, preset("llama-7b")) for spec in specs]
    assert plans[0] != plans[1]
    first, second = (
        "\n".join(map(str, sharing_report(one, spec)))
        for one, spec in zip(plans, specs, strict=True)
    )
    assert first != second


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "share a per module rank 8",
            "LoRA of rank 8; `a`: scale 1; the targets are q_proj, v_proj",
        ),
        (
            "scale 2 share a per kind rank 4 via SS(slice = leading) share b per layer, kind rank 8",
            "; `a`, `b`: scale 2; `a`: via SS(slice = leading); q_proj of layers 0-29 share A, B, for",
        ),
        (f"{PER} via BlockDiagonal(blocks = 3)", "; an update has rank 24 at most"),
        (f"{PER} magnitude per module", "this is a DoRA of rank 8"),
        (f"train none {PER}", "nothing of the base is trained in full, not even a new head"),
        (
            "share a where q_proj or layer > 9 per module rank 2",
            "q_proj of all layers and v_proj of layers 10-29",
        ),
        (f"{PER} magnitude per module plain", "without the lengths of a DoRA"),
        (f"dropout 0.95 {PER}", "; drops 95% of its inputs"),
        ("target none train norm", "trained in full; `model.norm.weight` is trained in full"),
        (
            f"{PER} init A svd, B svd",
            "a LoRA of rank 8; `a`: scale 1; what it starts with is subtracted",
        ),
        (f"{PER} init B normal start nonzero", "; a fresh model differs from its base"),
        ("param r = 8 share a per module rank r alpha 8", "; the scale is 8 / rank"),
        (
            "param n = 4 share a per module rank 8 via Grid(blocks = n) share b per kind rank 8 via Grid",
            "; q_proj of layers 0-29 share A, B, for example; reads no param n; ",
        ),
    ],
)
def test_the_sentence_says_what_the_table_does_not(text, said):
    assert said in sharing_report(plan(text), spec_of(text))[-1].replace("\n", "; ")


def test_the_table_says_what_is_left_out_ranks_numbers_and_starts():
    text = "share a where layer > 2 per module rank 8 init A svd gain out init 2"
    (row,) = shared_table(made := plan(text), shares(made)).rows
    assert row[1:3] == ["54 of 60", "8"]
    assert row[3:6] == ["54, private, from svd", "54, private", "54, private, from 2"]
    assert row[6:] == [27 * (2 * 8 * 576 + 8 * (576 + 192)) + 27 * (576 + 192), "0%"]


def test_the_table_says_that_a_tensor_is_another_shares():
    text = "share a per layer rank 8 where q_proj share b A is a.A B is a.B rank 8 where q_proj"
    made = plan(text)
    table = shared_table(made, shares(made))
    assert table.rows[1][3:] == ["is a.A", "is a.B", 0, "-"]
    assert [row.owner for row in roles(made)] == [None, None, "a.A", "a.B"]
    assert sum(row.parameters for row in roles(made)) == made.trainable


def test_a_share_of_pools_and_of_private_tensors_says_its_part():
    made = plan("share a per abs(layer - 15), kind rank 8")
    ((*_, shared),) = shared_table(made, shares(made)).rows
    assert shared == "88%"  # as in the sentence: layers 0 and 15 are alone
