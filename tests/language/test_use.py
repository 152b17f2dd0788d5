import os

import pytest
from hypothesis import HealthCheck, given, settings

from bishare_dsl.diagnostics import SpecError, as_json
from bishare_dsl.language import format_text, parse_spec, read, read_file, spec_text
from bishare_dsl.spec import Match, Ref, Settings
from bishare_dsl.testing.any_specs import specs

BASE = """spec base
param r = 2
param size = 64
let mlp = up_proj, down_proj
let all = mlp, q_proj
target all
scale 2
dropout 0.1
init A ones, B zeros
share local  per module  rank r
share inter  per model   rank r  via KE(size = size)
"""
OWN = "share own  per layer  rank 1\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.share").write_text(BASE)
    return tmp_path


def using(text, *names, name="main"):
    uses = "".join(f'use "{used}"\n' for used in names or ["base.share"])
    return f"spec {name}\n{uses}{text}"


def problems(text, name="main.share"):
    with pytest.raises(SpecError) as caught:
        parse_spec(text, name)
    return caught.value


def test_a_used_file_s_statements_stand_before_the_file_s_own(folder):
    spec = parse_spec(using(OWN))
    alone = parse_spec(BASE)
    assert spec.name == "main"
    assert [share.name for share in spec.shares] == ["local", "inter", "own"]
    assert spec == alone.model_copy(
        update={"name": "main", "shares": (*alone.shares, spec.shares[-1])}
    )


def test_target_and_defaults_of_the_file_itself_go_before_those_used(folder):
    spec = parse_spec(using("target k_proj\nalpha 16\ninit B normal\n" + OWN))
    assert [part.ref for part in spec.target.include] == ["k_proj"]
    assert spec.defaults == Settings(
        alpha=16, scale=2, dropout=0.1, init={"A": "ones", "B": "normal"}
    )


def test_what_replaces_stands_where_the_replaced_one_stood(folder):
    spec = parse_spec(
        using(
            'replace param r = 8\nreplace let mlp = kind "*_proj"\n'
            "replace share local  per layer  rank r\n"
        )
    )
    assert spec.params[0].value == 8
    assert [let.name for let in spec.lets] == ["mlp", "all"]
    assert spec.lets[0].selection.include == (Match(attribute="kind", pattern="*_proj"),)
    assert [share.name for share in spec.shares] == ["local", "inter"]
    assert spec.shares[0].per == (Ref(ref="layer"),)


def test_the_order_of_uses_means_nothing(folder):
    for name in ("left", "right"):
        (folder / f"{name}.share").write_text(
            using("replace share local  per layer  rank 1\n", name=name)
        )
    for order in (("left.share", "right.share"), ("right.share", "left.share")):
        assert [p.code for p in problems(using("", *order)).problems] == ["BS136"]
        spec = parse_spec(using("replace share local  per model  rank 1\n", *order))
        assert spec.shares[0].per == ()
    # One that replaces and one that does not disagree too.
    both = problems(using("", "base.share", "left.share"))
    assert [problem.code for problem in both.problems] == ["BS136"]


def test_a_param_of_the_whole_is_set_wherever_it_was_declared(folder):
    assert parse_spec(using(OWN)).with_params({"size": 16}).params[1].value == 16


def test_paths_start_at_the_file_that_says_use(folder, monkeypatch):
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "main.share").write_text(using(OWN, "b/next.share"))
    (folder / "a" / "b" / "next.share").write_text(using("", "../../base.share", name="next"))
    expected = parse_spec(using(OWN))
    assert read_file("a/main.share", allow_use=True)[0] == expected
    monkeypatch.chdir(folder / "a")
    assert read_file(folder / "a" / "main.share", allow_use=True)[0] == expected


def test_a_shipped_spec_is_used_by_name_and_a_file_goes_before_it(folder):
    assert [param.name for param in parse_spec(using("", "lora")).params] == ["r", "lora_alpha"]
    assert parse_spec(using("", "lora.share")) == parse_spec(using("", "lora"))
    (folder / "lora.share").write_text(BASE)
    assert [param.name for param in parse_spec(using("", "lora.share")).params] == ["r", "size"]


def test_every_part_is_found_in_its_file(folder):
    _, where = read(using(OWN), "main.share")
    span = where.locate(("shares", 1, "via", "options", "size"))
    assert where.place(span) == "base.share:11:48"
    assert [where.place(use) for use in where.uses(span)] == ["main.share:2:5"]
    own = where.locate(("shares", 2, "rank"))
    assert where.place(own) == "main.share:3:28"
    assert where.uses(own) == []


def test_64_files_are_allowed_and_65_are_not(folder):
    names = [f"{i}.share" for i in range(65)]
    for name in names:
        (folder / name).write_text("spec empty\n")
    assert parse_spec(using("", "base.share", *names[:63])).shares
    error = problems(using("", "base.share", *names[:64]))
    assert [problem.code for problem in error.problems] == ["BS133"]


def test_what_the_system_keeps_is_an_error_at_its_use(folder, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", denied)
    error = problems(using(""))
    assert [problem.code for problem in error.problems] == ["BS131"]
    assert "`base.share` cannot be read: Permission denied" in str(error)


SECRET = "# comment\nroot:x:0:0 SECRET\n"


@pytest.mark.parametrize(
    "name", ["../secret", "{above}/secret", "link", "linked/secret", "sub/../../secret"]
)
def test_a_spec_reaches_no_file_outside_of_its_folder(tmp_path, monkeypatch, name):
    folder = tmp_path / "own"
    (folder / "sub").mkdir(parents=True)
    monkeypatch.chdir(folder)
    (tmp_path / "secret").write_text(BASE)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(tmp_path)
    text = using(OWN, name.format(above=tmp_path))
    error = problems(text)
    assert [problem.code for problem in error.problems] == ["BS138"]
    assert parse_spec(text, "main.share", allow_use=True).shares
    # Whether the file is there is not told either.
    (tmp_path / "secret").unlink()
    assert str(problems(text)) == str(error)


def test_a_link_within_the_folder_and_a_shipped_spec_are_reached(folder):
    (folder / "link.share").symlink_to(folder / "base.share")
    assert parse_spec(using(OWN, "link.share"), "main.share").shares
    (folder / "next.share").write_text('spec next\nuse "bishare_ke.share"\n')
    assert parse_spec(using(OWN, "next.share"), "main.share").shares


@pytest.mark.parametrize("content", [SECRET.encode(), b"", b"\xff\xfe\0SECRET", b"specs SECRET"])
def test_nothing_is_shown_of_a_file_that_is_not_a_spec(folder, content):
    (folder / "secret.share").write_bytes(content)
    error = problems(using(OWN, "secret.share"))
    assert [problem.code for problem in error.problems] == ["BS139"]
    assert "SECRET" not in str(error)
    assert "SECRET" not in str([as_json(problem, error.where) for problem in error.problems])


def test_pipes_are_not_read(folder):
    os.mkfifo(folder / "pipe.share")
    error = problems(using(OWN, "pipe.share"))
    assert [problem.code for problem in error.problems] == ["BS130"]


def test_a_file_to_be_used_is_formatted_by_itself_and_reads_no_other():
    text = 'spec lets\n\nuse "no_such.share"\n\nlet mlp = up_proj, down_proj\n'
    assert format_text(text) == text


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(specs())
def test_a_spec_in_two_files_says_the_same(folder, spec):
    text = spec_text(spec)
    head, share, shares = text.partition("\nshare ")
    (folder / "head.share").write_text(head, encoding="utf-8", newline="\n")
    whole, where = read(using(share + shares, "head.share"), "main.share")
    assert (whole.target, whole.defaults, whole.shares) == (spec.target, spec.defaults, spec.shares)
    assert set(whole.params) <= set(spec.params)
    if spec.target is not None:
        assert where.place(where.spans["target",]).startswith("head.share:")
    assert parse_spec(spec_text(whole)) == whole
