import io

from transformers import TrainerControl, TrainerState

from bishare_dsl.train.curve import draw_curve
from bishare_dsl.train.progress import progress

LOGS = {"loss": 1.25, "learning_rate": 1e-4, "grad_norm": 2.0, "tokens_per_second": 1234.5}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def progress_output(stream):
    """What a run of four steps tells."""
    shown = progress(stream)
    state, control = TrainerState(max_steps=4), TrainerControl()
    shown.on_train_begin(None, state, control)
    for step in (1, 2, 3, 4):
        state.global_step = step
        shown.on_step_end(None, state, control)
        shown.on_log(None, state, control, logs={**LOGS, "loss": 2 / step})
    shown.on_prediction_step(None, state, control, eval_dataloader=[1, 2])
    shown.on_log(None, state, control, logs={"eval_loss": 0.75})
    shown.on_evaluate(None, state, control)
    shown.on_save(None, state, control)
    shown.on_log(None, state, control, logs={"train_runtime": 3.0})
    shown.close()
    return stream.getvalue()


def test_lines():
    lines = progress_output(io.StringIO()).splitlines()
    assert lines[0].startswith(
        "step 1/4 · loss 2.0000 · gradient 2 · lr 1.00e-04 · 1,234 tokens/s · 0:0"
    )
    assert lines[0].endswith(" left")
    assert lines[4:] == ["step 4/4 · held-out loss 0.7500", "step 4/4 · checkpoint saved"]


def test_a_bar(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    text = progress_output(Terminal())
    assert "step 4: held-out loss 0.7500" in text
    last = text.rsplit("training", 1)[1]
    assert "4/4" in last
    assert "loss 0.5000 · 1,234 tokens/s" in last
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # The cursor is back.


def test_the_curve(tmp_path):
    history = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.0},
        {"step": 2, "eval_loss": 1.5},
        {"step": 2, "train_runtime": 1.0},
    ]
    draw_curve(tmp_path, history, "a title")
    both = (tmp_path / "loss.png").read_bytes()
    draw_curve(tmp_path, history[:2], "a title")
    one = (tmp_path / "loss.png").read_bytes()
    assert both.startswith(b"\x89PNG")
    assert one.startswith(b"\x89PNG")
    assert one != both
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_nothing_to_draw(tmp_path):
    draw_curve(tmp_path, [{"step": 1, "train_runtime": 1.0}], "a title")
    assert not list(tmp_path.iterdir())
