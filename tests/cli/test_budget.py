import json

import pytest

MATCH = ["--match", "lora:r=2", "--free", "r_local,r_intra,r_inter,r"]
SMOL = ["-m", "smollm2-135m"]


def rows(run):
    return json.loads(run.out)["rows"]


def test_specs_meet_the_budget_of_another(bishare, check_golden):
    run = bishare("plan", "bishare_ss", "lora", "bishare_ke", "vera", *SMOL, *MATCH)
    assert run.code == 0
    check_golden("plan-match.txt", run.out)
    found = rows(bishare("plan", "bishare_ss", "lora", "bishare_ke", *SMOL, *MATCH, "--json"))
    # LoRA r=2: 30 layers of q (576 + 576), k, v (576 + 192), up and down (576 + 1536).
    budget = 30 * 2 * (1152 + 2 * 768 + 2 * 2112)
    assert [row["of_match"] * budget for row in found] == [416_256, budget, 411_872]
    assert found[0]["set"] == {"r_local": 1, "r_intra": 2, "r_inter": 8}
    # alpha 16 at rank 2.
    assert [row["scale"] for row in found] == [[2, 2], [8, 8], [2, 2]]
    for row in found:
        settings = [f"--set={name}={value}" for name, value in row["set"].items()]
        plan = json.loads(bishare("plan", row["file"], *SMOL, *settings, "--json").out)
        assert plan["trainable"] == row["trainable"]


def test_without_values_within_the_tolerance_the_nearest_are_shown(bishare, here):
    config = {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    }
    (here / "config.json").write_text(json.dumps(config))
    command = ["plan", "bishare_ss", "-m", "config.json", *MATCH[:3], "r_local,r_intra,r_inter"]
    run = bishare(*command, "--json")
    below, above = rows(run)
    assert below["set"] == {"r_local": 1, "r_intra": 1, "r_inter": 7}
    assert above["set"] == {"r_local": 1, "r_intra": 1, "r_inter": 8}
    assert (below["trainable"], above["trainable"]) == (81_408, 84_480)
    (problem,) = json.loads(run.out)["problems"]
    assert problem["code"] == "BS909"
    assert "98.1% and 101.9%" in problem["message"]
    assert run.code == 2
    # The remedy works as it stands.
    assert problem["help"] == "`--within 2` takes the nearest"
    run = bishare(*command, "--within", "2", "--json")
    assert (run.code, len(rows(run))) == (0, 1)


def test_params_that_would_meet_the_budget_are_named(bishare):
    command = ["plan", "bishare_ke", *SMOL, "--match", "lora:r=2"]
    run = bishare(*command, "--free", "r_local")
    assert "error[BS909]" in run.err
    assert "bishare_ke.share:9:6" in run.err
    assert "help: add `--free r_intra,r_inter`" in run.err
    assert bishare(*command, "--free", "r_local", "--free", "r_intra,r_inter").code == 0
    run = bishare("plan", "lora", *SMOL, "--match", "lora:r=2")
    assert "nothing is free, and it has 400.0% of it" in run.err
    assert "help: add `--free r`" in run.err
    # What meets it already needs no param.
    assert bishare("plan", "lora", *SMOL, "--match", "lora").code == 0


@pytest.mark.parametrize(
    ("match", "parameters"),
    [("1658880", 1_658_880), ("1,658,880", 1_658_880), ("1658.88k", 1_658_880), ("1.66M", 1.66e6)],
)
def test_a_budget_is_a_number(bishare, match, parameters):
    run = bishare("plan", "lora", *SMOL, "--match", match, "--free", "r", "--json")
    (row,) = rows(run)
    assert row["set"] == {"r": 8}
    assert row["of_match"] == 1_658_880 / parameters


def test_each_model_and_each_value_has_its_own_answer(bishare):
    run = bishare(
        *("plan", "bishare_ss", *SMOL, "-m", "llama-7b", "--set", "slice=centre,leading"),
        *("--match", "lora:r=2", "--free", "r_local,r_intra,r_inter", "--json"),
    )
    found = rows(run)
    assert [(row["model"], row["set"]["slice"]) for row in found] == [
        (model, slice) for model in ("smollm2-135m", "llama-7b") for slice in ("centre", "leading")
    ]
    assert [row["set"]["r_inter"] for row in found] == [8, 8, 16, 16]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("--match lora:r=2 --free rr", "BS207", "there are `lora_alpha`, `r`"),
        ("--match lora:r=2 --free lora_alpha", "BS908", "lora.share:6:1"),
        ("--match lora:r=2 --free r --set r=4", "BS908", "leave `r` out of `--free`"),
        ("--match lorra:r=2 --free r", "BS902", "did you mean `lora`?"),
        ("--match lora:q=2 --free r", "BS207", "there are `lora_alpha`, `r`"),
        ("--match lora:r --free r", "BS907", "`--match 9.46M`"),
        ("--match 0 --free r", "BS907", "trains no parameter"),
        ("--free r", "BS901", "--match lora:r=8"),
        ("--within 2", "BS901", "--match lora:r=8"),
        ("--match lora --free r --within 0", "BS901", "not in the range"),
    ],
)
def test_wrong_budgets_are_refused(bishare, arguments, code, said):
    run = bishare("plan", "lora", *SMOL, *arguments.split())
    assert run.code == 2
    assert f"error[{code}]" in run.err
    assert said in run.err


def test_a_word_is_no_number_to_choose(bishare):
    run = bishare("plan", "bishare_ke", "lora", *SMOL, "--match", "lora:r=2", "--free", "size,r")
    assert "error[BS908]" in run.err
    assert "its value is `auto`, and not a whole number" in run.err
    assert "bishare_ke.share:14:1" in run.err
    # The other specs are compared.
    assert run.out.splitlines()[-3].split()[:3] == ["lora", "smollm2-135m", "2"]
