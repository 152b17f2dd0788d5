"""Groups of tasks that the user names, and what is wrong with them; no model is loaded."""

import json

import pytest

from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.grouping import BY_FOLDER, named_groups
from bishare_dsl.train.request import make_request

FILES = ("sales/globex", "sales/hooli", "support/acme")


@pytest.fixture
def tree(here):
    for name in FILES:
        path = here / "data" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"prompt": "a", "completion": "b"}')
    return here


def asked(**arguments):
    given = {"spec": "library_core", "model": "base", "output_dir": "out", "data": ["data"]}
    return make_request({"groups": BY_FOLDER, **given, **arguments}, None)


def refused(**arguments):
    """Return the message and the help of the error of a request with groups."""

    def groups():
        request = asked(**arguments)
        return named_groups(str(request.groups), request.data)

    with pytest.raises(TrainError) as error:
        groups()
    (problem,) = error.value.problems
    return f"{problem.code} {problem.message} = {problem.help}"


def test_folders_of_a_folder_are_groups(tree):
    request = asked()
    assert request.data == {name.partition("/")[2]: f"data/{name}.jsonl" for name in FILES}
    groups = named_groups(BY_FOLDER, request.data)
    assert groups == {"sales": ("globex", "hooli"), "support": ("acme",)}
    # As a shell writes `data/*/*.jsonl`, and as `run.json` has it.
    assert asked(data=[f"data/{name}.jsonl" for name in FILES]).data == request.data
    assert asked(data=request.as_dict(None)["data"]).tasks.keys() == request.tasks.keys()


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_a_manifest_lists_the_tasks_of_each_group(tree, ending):
    listed = {"first": ["acme", "hooli"], "second": ["globex"]}
    path = tree / f"groups.{ending}"
    path.write_text(json.dumps(listed))
    files = [f"data/{name}.jsonl" for name in FILES]
    request = asked(data=files, groups=path.name)
    assert named_groups(path.name, request.data) == {n: tuple(names) for n, names in listed.items()}
    assert request.as_dict(None)["groups"] == str(path)


def test_a_folder_without_rows_is_no_group(tree):
    (tree / "data" / "empty").mkdir()
    said = refused()
    assert "BS749 the tasks cannot be grouped: the group `data/empty` has no file of rows" in said
    assert "remove the folder" in said
    # The remedy works.
    (tree / "data" / "empty").rmdir()
    assert asked()


def test_a_task_in_two_folders_is_in_two_groups(tree):
    twice = tree / "data" / "support" / "hooli.jsonl"
    twice.write_text("{}")
    said = refused()
    assert (
        "`hooli` is in two groups: `data/sales/hooli.jsonl` and `data/support/hooli.jsonl`" in said
    )
    twice.unlink()
    assert asked()


def test_files_beside_folders_and_folders_in_groups_are_no_groups(tree):
    (tree / "data" / "wonka.jsonl").write_text("{}")
    assert "`data/wonka.jsonl` is in no group" in refused()
    (tree / "data" / "wonka.jsonl").unlink()
    (tree / "data" / "sales" / "old").mkdir()
    assert "`data/sales/old` is a folder in the folder of a group" in refused()


def test_folders_of_one_name_and_names_that_no_adapter_has_are_refused(tree):
    other = tree / "more" / "support"
    other.mkdir(parents=True)
    (other / "wonka.jsonl").write_text("{}")
    files = [f"data/{name}.jsonl" for name in FILES]
    said = refused(data=[*files, "more/support/wonka.jsonl"])
    assert f"two folders are called `support`: `{tree}/data/support` and `{other}`" in said
    (tree / "data" / "support").rename(tree / "data" / "help desk")
    assert "names a group `help desk`" in refused()
    assert "`x` is in no folder: `me/x` is no file" in refused(data={"x": "me/x", "y": files[0]})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": ["acme", "hooli"], "b": []}', "the group `b` of `groups.yaml` has no task"),
        (
            "a: [acme, hooli]\nb: [globex, acme]",
            "`acme` is in two groups of `groups.yaml`: `a` and `b`",
        ),
        ("a: [acme, acme]\nb: [globex, hooli]", "`a` twice"),
        ("a: [acme, holi]\nb: [globex]", "lists `holi` in `a`, and `--data` has no such task"),
        ("a: [acme]\nb: [globex]", "`groups.yaml` lists `hooli` in no group"),
        ("a: [acme, globex, hooli]", "there is one group, `a`"),
        ("a b: [acme]\nb: [globex, hooli]", "names a group `a b`"),
        ("[1, 2]", "BS734 the config `groups.yaml` cannot be read: it has no groups by name"),
        (
            "a: acme\nb: [globex, hooli]",
            "BS734 the config `groups.yaml` cannot be read: `a` is no list",
        ),
        ("a: [", "BS734 the config `groups.yaml` cannot be read"),
    ],
)
def test_a_wrong_manifest_is_refused_with_its_place(tree, content, said):
    (tree / "groups.yaml").write_text(content)
    files = [f"data/{name}.jsonl" for name in FILES]
    assert said in refused(data=files, groups="groups.yaml")


def test_a_near_name_is_advised(tree):
    (tree / "groups.yaml").write_text("a: [acme, holi]\nb: [globex]")
    files = [f"data/{name}.jsonl" for name in FILES]
    assert "did you mean `hooli`?" in refused(data=files, groups="groups.yaml")


def test_groups_need_tasks_of_a_new_library(tree):
    assert "BS732" in refused(together=True)
    assert "`library` is given = leave `--groups` or `--library` out" in refused(library="data")
    assert "`--data` gives one task, `acme`" in refused(data=["data/support/acme.jsonl"])
    assert "`--data` gives one task, `dta` = name a folder that exists" in refused(data=["dta"])
    files = [f"data/{name}.jsonl" for name in FILES]
    assert "BS731 `groups` cannot be `by-name`: it is `by-folder`" in refused(
        data=files, groups="by-name"
    )
    assert "BS731" in refused(data=7)
    said = refused(groups=None)
    assert "`data` has no file of rows, and its folders have: `--groups by-folder` makes" in said
