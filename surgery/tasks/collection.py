"""Tasks whose examples lie in one folder, a folder a task: `DIR/sst2/train.jsonl`, `DIR/sst2/test.jsonl` and so on."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from surgery.errors import TaskError
from surgery.tasks.data_files import READERS
from surgery.tasks.task import Task, several

_SPLITS = ("train", "dev", "test")


def load_tasks(names: Iterable[str], root: str | Path, splits: Iterable[str] = _SPLITS, **options: Any) -> list[Task]:
    """Load tasks by name with those of the splits that lie in `root`.

    Args:
        options: as `Task.load` takes them, the same for all.

    Raises:
        TaskError: no such folder or no training examples in it, a task that is named twice, and what `Task.load` refuses.
    """
    folder, tasks = Path(root).expanduser(), []
    for name in names:
        found = {split: _file(folder / name, split) for split in splits}
        files: dict[str, Any] = {split: file for split, file in found.items() if file}
        if "train" not in files:
            where = (
                f"{folder / name} isn't there" if not (folder / name).is_dir() else f"{folder / name} has no train file"
            )
            raise TaskError(f"{where}: `data_root` has a folder a task, with train.jsonl, test.jsonl and so on")
        tasks.append(Task.load(name, **files, **options))
    return list(several(tasks))


def _file(folder: Path, split: str) -> Path | None:
    """The split's file in the first format that it is there in."""
    found = (folder / f"{split}{ending}" for ending in READERS)
    return next((file for file in found if file.exists()), None)
