import json

import pytest

GOOD = "spec good\ntarget q_proj\nshare local per module rank 4\n"
BAD = "spec bad\nparam r = 4\ntarget q_proj, FAKE\nshare local per module rank q\n"


def test_a_good_spec_is_told_back(bishare, here):
    (here / "good.share").write_text(GOOD)
    run = bishare("check", "good.share")
    assert run.code == 0
    assert run.out.startswith("on the shapes of llama-7b, for example:")
    assert run.out.endswith(
        "nothing is shared: this is a LoRA of rank 4\n`local`: scale 1\nthe targets are q_proj\n"
    )
    (here / "other.share").write_text(GOOD.replace("q_proj", "c_attn"))
    assert "give `--model` to see what is shared" in bishare("check", "other.share").err
    assert "1 spec checked: all fine" in run.err
    assert "not checked without `--model`" in run.err
    assert "not checked" not in bishare("check", "good.share", "--model", "llama-7b").err
    assert bishare("check", "--quiet", "good.share").err == ""
    (here / "good.share").write_text(f"{GOOD}share own per adapter, module rank 1\n")
    assert "\nnothing is shared within an adapter: " in bishare("check", "good.share").out


def test_what_is_shared_is_in_the_json(bishare, here):
    (here / "pairs.share").write_text(GOOD.replace("per module", "per layer // 2"))
    run = bishare("check", "pairs.share", "--model", "llama-7b", "--json")
    told = json.loads(run.out)["sharing"]["pairs.share"]
    shared = "100% of the trained parameters are shared, 0% are private to one module"
    facts = ["scale 1", "q_proj of layers 0-1 share A, B, for example"]
    assert told["conclusion"] == f"{shared}; `local`: {'; '.join(facts)}; the targets are q_proj"
    tensors = dict.fromkeys("AB", "16, each by 2 modules")
    [row] = told["shares"]
    assert (row["name"], row["modules"], row["ranks"]) == ("local", 32, [4])
    assert (row["tensors"], row["shared"], row["facts"]) == (tensors, 1.0, facts)


def test_every_error_of_every_file_is_reported_in_one_run_also_as_json(bishare, here):
    (here / "bad.share").write_text(BAD)
    (here / "worse.share").write_text("spec worse\ntarget\nshare local per module rank\n")
    (here / "good.share").write_text(GOOD)
    run = bishare("check", "bad.share", "good.share", "worse.share")
    assert run.code == 1
    assert "bad.share:4:29" in run.out
    assert "bad.share:2:1" in run.out  # r is never used
    assert run.out.count("worse.share:") == 2
    assert "3 specs checked: 3 errors, 1 warning" in run.err
    run = bishare("check", "bad.share", "nowhere.share", "--json")
    assert run.code == 2
    data = json.loads(run.out)
    assert data["files"] == ["bad.share", "nowhere.share"]
    assert [problem["code"] for problem in data["problems"]] == ["BS213", "BS201", "BS902"]
    place = data["problems"][1]
    assert (place["file"], place["line"], place["column"]) == ("bad.share", 4, 29)
    assert json.loads(bishare("check", "bishare_ke", "--json").out)["problems"] == []


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"\0", b"(" * 20_000, b"spec x\r\n" * 3])
def test_any_bytes_end_in_located_errors(bishare, here, text):
    run = bishare("check", "-", stdin=text)
    assert run.code == 1
    assert "<stdin>:" in run.out


EVIL = r"\u001b[2Jx\nerror[BS000]: forged"


def test_a_spec_writes_no_lines_and_no_codes_of_the_terminal(bishare, here):
    (here / "evil.share").write_text(f'spec "{EVIL}"\nuse "{EVIL}"\nuse "{EVIL}2"\n')
    run = bishare("check", "evil.share")
    assert r"\x1b[2Jx\nerror[BS000]: forged" in run.out
    runs = [run]
    (here / "evil.share").write_text(
        f'spec "{EVIL}"\nparam p = "{EVIL}"\ntarget q_proj\nshare local per module rank 4 alpha 8\n'
    )
    for words in ("plan evil.share", "plan evil.share evil.share", "check evil.share"):
        runs.append(bishare(*words.split(), "--model", "llama-7b"))
        assert runs[-1].code == 0
    for run in runs:
        assert "\x1b" not in run.out + run.err
        assert not [line for line in run.out.splitlines() if line.startswith("error[BS000]")]


def test_a_spec_uses_files_of_other_folders_with_the_user_s_word_alone(bishare, here):
    (here / "base.share").write_text(GOOD)
    (here / "own").mkdir()
    (here / "own" / "main.share").write_text('spec main\nuse "../base.share"\n')
    run = bishare("check", "own/main.share")
    assert run.code == 1
    assert "error[BS138]: `../base.share` is outside of the spec's folder" in run.out
    assert bishare("check", "own/main.share", "--allow-use").code == 0
    assert bishare("plan", "own/main.share", "--allow-use", "--model", "llama-7b").code == 0


def test_many_shares_are_checked_and_not_planned_for_an_example(bishare, here):
    shares = [f"share s{i} per module rank 1 where layer == {i % 32}" for i in range(101)]
    lines = ["spec many", "target q_proj", *shares, ""]
    (here / "many.share").write_text("\n".join(lines))
    run = bishare("check", "many.share")
    assert (run.code, run.out) == (0, "")
    assert "many.share has 101 shares: give `--model` to see what they share" in run.err
    assert "s0 and 100 like it" in bishare("check", "many.share", "--model", "llama-7b").out
    (here / "many.share").write_text("\n".join(lines).replace("rank 1", "rank q"))
    assert bishare("check", "many.share").out.count("error[BS201]") == 101
