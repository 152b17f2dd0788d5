import logging
import sys

import pytest
from tqdm import tqdm

from bishare_dsl.evaluate.quiet import overheard

LOGGER = logging.getLogger("lm_eval.api.task")


def test_what_is_said_is_kept_once_and_bars_are_not(capfd):
    said = ["known"]
    with overheard(said):
        for number in tqdm(range(3), desc="bar"):
            LOGGER.warning("row %d is cut", number)
        LOGGER.info("not worth telling")
        logging.getLogger("lm_eval.evaluator").warning("num_fewshot was set")
        sys.stdout.write("known\n")
        sys.stderr.write("printed\n")
    assert said == ["known", "row 0 is cut (and 2 more like it)", "printed"]
    assert capfd.readouterr() == ("", "")


def test_everything_is_as_before_after_an_error(capfd):
    from lm_eval import evaluator
    from transformers.utils import logging as transformers_logging

    def state():
        root = logging.getLogger("lm_eval")
        return (
            (root.level, root.handlers, root.propagate),
            transformers_logging.get_verbosity(),
            evaluator.get_git_commit_hash,
        )

    def fail():
        LOGGER.warning("just before")
        raise KeyError

    before = state()
    said = []
    with pytest.raises(KeyError), overheard(said):
        fail()
    assert state() == before
    assert said == ["just before"]


def test_git_is_not_asked_where_there_is_no_repository(tmp_path, monkeypatch):
    from lm_eval import evaluator

    monkeypatch.chdir(tmp_path)
    with overheard([]):
        assert evaluator.get_git_commit_hash() is None
