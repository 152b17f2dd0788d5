import stat

import pytest

from bishare_dsl.resources import shipped_specs

UGLY = b"\xef\xbb\xbfspec   x\r\ntarget q_proj\r\nshare a per module rank 4 # why\r\n"
NEAT = b"spec x\n\ntarget q_proj\n\nshare a  per module  rank 4  # why\n"


@pytest.fixture
def ugly(here):
    path = here / "ugly.share"
    path.write_bytes(UGLY)
    path.chmod(0o751)
    return path


def test_a_file_is_rewritten_with_its_mode_and_a_neat_one_is_not_touched(bishare, ugly):
    run = bishare("fmt", "--check", "ugly.share")
    assert (run.code, run.out) == (1, "would change ugly.share\n")
    assert ugly.read_bytes() == UGLY
    assert bishare("fmt", "ugly.share").code == 0
    assert ugly.read_bytes() == NEAT
    before = ugly.stat()
    assert stat.S_IMODE(before.st_mode) == 0o751
    assert bishare("fmt", "ugly.share").code == bishare("fmt", "--check", "ugly.share").code == 0
    after = ugly.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert [path.name for path in ugly.parent.iterdir()] == ["ugly.share"]


def test_a_link_stays_a_link(bishare, ugly):
    link = ugly.with_name("link.share")
    link.symlink_to(ugly)
    bishare("fmt", "link.share")
    assert link.is_symlink()
    assert ugly.read_bytes() == NEAT


def test_standard_input_goes_to_standard_output(bishare):
    run = bishare("fmt", "-", stdin=UGLY)
    assert (run.code, run.out.encode(), run.err) == (0, NEAT, "")


def test_a_broken_file_is_left_alone_and_the_others_are_formatted(bishare, ugly):
    broken = ugly.with_name("broken.share")
    broken.write_bytes(b"spec x\ntarget ,\n")
    run = bishare("fmt", "broken.share", "nowhere.share", "ugly.share")
    assert run.code == 2
    assert run.out == ""
    assert "broken.share:2:8" in run.err
    assert "BS902" in run.err
    assert broken.read_bytes() == b"spec x\ntarget ,\n"
    assert ugly.read_bytes() == NEAT
    assert bishare("fmt", "broken.share").code == 1


def test_shipped_specs_are_neat_and_not_rewritten_by_their_names(bishare, here):
    assert bishare("fmt", "--check", *shipped_specs().values()).code == 0
    assert bishare("fmt", "bishare_ke").code == 2


def test_what_cannot_be_written_stays(bishare, ugly, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    run = bishare("fmt", "ugly.share")
    assert (run.code, "No space left" in run.err, ugly.read_bytes()) == (2, True, UGLY)
    assert [path.name for path in ugly.parent.iterdir()] == ["ugly.share"]
