"""The folder of a run: whether a run may begin in it, or go on.

| | |
|---|---|
| the adapter's files | once the run is finished, so that the folder is an adapter's |
| ``checkpoint-N/`` | `bishare_dsl.train.checkpoint` |
| ``run.json`` | `bishare_dsl.train.record` |
| ``log.jsonl``, ``loss.png``, ``runs/`` | what was logged, plotted, and told to TensorBoard |
"""

from __future__ import annotations

from pathlib import Path

from bishare_dsl.adapter import files
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train.checkpoint import (
    Checkpoint,
    check_state,
    checkpoints,
    find_unfinished,
    is_own,
    read_checkpoint,
)
from bishare_dsl.train.curve import CURVE
from bishare_dsl.train.errors import TrainError, translate_refusals
from bishare_dsl.train.record import LOG, RUN, read_record
from bishare_dsl.writing import check_writable, remove_folder

# The adapter's config first: without it there is no adapter, whatever else is left.
_OURS = (files.CONFIG, files.TENSORS, LOG, CURVE)


def check_new(folder: Path, *, force: bool) -> None:
    """Check that a run may begin in a folder.

    Args:
        folder: that need not exist.
        force: whether an earlier run may be removed.

    Raises:
        TrainError: it holds a run (BS740), or other files of a run's names (BS741), or cannot be
            written (BS747).
    """
    with translate_refusals(folder):
        _check_new(folder, force=force)
        check_writable(folder)


def _check_new(folder: Path, *, force: bool) -> None:
    record = read_record(folder)
    if record is not None:
        if not force:
            status = record.get("status", "its record cannot be read")
            help = f"`bishare train --resume {folder}` goes on with it, `--force` begins anew"
            raise TrainError(codes.RUN_EXISTS(folder=folder, status=status, help=help))
    elif (folder.exists() and not folder.is_dir()) or _written(folder):
        reason = "it is not empty, and holds no run of bishare"
        raise TrainError(codes.NOT_A_RUN(folder=folder, reason=reason))
    if foreign := [path.name for path in checkpoints(folder) if not is_own(path)]:
        reason = f"`{foreign[0]}` in it is not a checkpoint of bishare, or holds other files too"
        raise TrainError(codes.NOT_A_RUN(folder=folder, reason=reason))


def clear(folder: Path) -> None:
    """Remove what an earlier run has written, its record last. A card that was edited since stays.

    Raises:
        OSError: the system refused.
    """
    for path in (*_written(folder), *_told(folder), *find_unfinished(folder)):
        if path.is_dir() and not path.is_symlink():
            remove_folder(path)
        else:
            path.unlink(missing_ok=True)
    (folder / RUN).unlink(missing_ok=True)


def find_checkpoint(folder: Path, which: str) -> Checkpoint:
    """Find the checkpoint that a run is to go on from.

    Args:
        folder: of the run; `tidy` has been called on it.
        which: ``"last"``, or a path.

    Raises:
        TrainError: there is none (BS742), it is broken (BS743), or it is the adapter alone (BS746).
    """
    if which == "last":
        found = checkpoints(folder)
        if not found:
            reason = f"`{folder}` has none" if folder.is_dir() else f"there is no folder `{folder}`"
            help = "`--force` begins anew" if read_record(folder) is not None else None
            raise TrainError(codes.NO_CHECKPOINT(reason=reason, help=help))
        path = found[-1]
    else:
        path = Path(which).expanduser()
    checkpoint = read_checkpoint(path)
    if checkpoint.state is None:
        raise TrainError(codes.ADAPTER_ONLY(folder=path))
    check_state(checkpoint)
    return checkpoint


def is_in(folder: Path, checkpoint: Checkpoint) -> bool:
    """Tell whether a checkpoint is of the run in a folder."""
    return checkpoint.folder.resolve().parent == folder.resolve()


def drop_later(folder: Path, checkpoint: Checkpoint) -> list[str]:
    """Remove the checkpoints behind one that a run goes on from: they will come again. Gives their names."""
    later = [
        path
        for path in checkpoints(folder)
        if int(path.name.split("-")[1]) > checkpoint.step and is_own(path)
    ]
    for path in later:
        remove_folder(path)
    return [path.name for path in later]


def _written(folder: Path) -> list[Path]:
    """Find what a run has written into a folder, but for its record."""
    named = (folder / name for name in _OURS)
    return [*(path for path in named if path.exists()), *checkpoints(folder)]


def _told(folder: Path) -> list[Path]:
    """Find what TensorBoard was told: folders that hold nothing but its events."""
    runs = (folder / "runs").iterdir() if (folder / "runs").is_dir() else ()
    return [
        run
        for run in runs
        if run.is_dir() and all(path.name.startswith("events.out.") for path in run.iterdir())
    ]
