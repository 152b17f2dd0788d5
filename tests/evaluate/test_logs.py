import logging
import sys

import pytest
from tqdm import tqdm

from bishare_dsl.evaluate.logs import capture_logs

LOGGER = logging.getLogger("lm_eval.api.task")


@pytest.mark.parametrize("bars", [False, True])
def test_what_is_logged_is_kept_once_and_nothing_is_written_but_bars(capfd, bars):
    said = ["known"]
    with capture_logs(said, bars=bars):
        for number in tqdm(range(3), desc="bar"):
            LOGGER.warning("row %d\n is cut", number)
        LOGGER.info("not worth telling")
        logging.getLogger("lm_eval.evaluator").warning("num_fewshot was set")
        sys.stdout.write("printed")
    assert said == ["known", "row 0 is cut (and 2 more like it)"]
    out, err = capfd.readouterr()
    assert out == ""
    assert ("bar" in err) == bars


def test_everything_is_as_before_after_an_error():
    from transformers.utils import logging as transformers_logging

    def state():
        root = logging.getLogger("lm_eval")
        return root.level, list(root.handlers), transformers_logging.get_verbosity(), sys.stderr

    def fail():
        LOGGER.debug("just before")
        raise KeyError

    before = state()
    said = []
    with pytest.raises(KeyError), capture_logs(said, level=logging.DEBUG):
        fail()
    assert state() == before
    assert said == ["just before"]
