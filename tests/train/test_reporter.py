import io
import re

from transformers import TrainerControl, TrainerState

from bishare_dsl.train.reporter import Progress

LOGS = {"loss": 1.25, "learning_rate": 1e-4, "grad_norm": 2.0}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def progress_output(stream):
    """What a run of four steps tells."""
    shown = Progress(stream)
    state, control = TrainerState(max_steps=4), TrainerControl()
    shown.on_train_begin(None, state, control)
    for step in (1, 2, 3, 4):
        state.global_step, state.num_input_tokens_seen = step, 100 * step
        shown.on_step_end(None, state, control)
        shown.on_log(None, state, control, logs={**LOGS, "loss": 2 / step})
    shown.on_log(None, state, control, logs={"eval_loss": 0.75})
    shown.on_save(None, state, control)
    shown.on_log(None, state, control, logs={"train_runtime": 3.0})
    shown.close()
    return stream.getvalue()


def test_lines():
    lines = progress_output(io.StringIO()).splitlines()
    assert re.fullmatch(r"step 1/4 · loss 2\.0000 · lr 1\.00e-04 · [\d,]+ tokens/s", lines[0])
    assert lines[4:] == ["step 4/4 · held-out loss 0.7500", "step 4/4 · checkpoint saved"]


def test_a_bar():
    text = progress_output(Terminal())
    assert "step 4/4 · held-out loss 0.7500\n" in text
    assert "saved" not in text
    last = text.rsplit("training", 1)[1]
    assert "4/4" in last
    assert re.search(r"loss 0\.5000 · [\d,]+ tokens/s", last)
    assert last.endswith("\n")
