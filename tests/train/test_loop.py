import os
import signal
import threading

import pytest

from bishare_dsl.train.watch import hear_signals


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request_and_the_second_is_not(which, capfd):
    heard = []
    before = signal.signal(which, lambda *_: heard.append(which))
    try:
        with hear_signals(True) as requested:
            assert not requested()
            os.kill(os.getpid(), which)
            assert requested()
            assert heard == []
            os.kill(os.getpid(), which)
            assert heard == [which]
        assert "stopping after this step" in capfd.readouterr().err
    finally:
        signal.signal(which, before)


def test_afterwards_signals_are_as_before():
    before = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)]

    def fails():
        with hear_signals(False):
            assert signal.getsignal(signal.SIGINT) is not before[0]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)] == before


def test_without_a_word(capfd):
    with hear_signals(False) as requested:
        os.kill(os.getpid(), signal.SIGTERM)
        assert requested()
    assert capfd.readouterr().err == ""


def test_in_another_thread_nothing_changes():
    before = signal.getsignal(signal.SIGINT)
    found = []

    def other():
        with hear_signals(False):
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [before]
