"""run_study(): stages one after another into one folder, each skipped once it is done."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint
from surgery.devices import pick_device
from surgery.errors import OptionError, SkillError
from surgery.files import check_apart, replace_json
from surgery.grafting.study.bench import Bench
from surgery.grafting.study.report import Study
from surgery.grafting.study.settings import Settings, Stage, alike, stages
from surgery.grafting.study.stages import clear, run_stage
from surgery.jsonfile import JsonError, load_json
from surgery.locks import hold
from surgery.progress import Progress, silent
from surgery.provenance import package_version, provenance
from surgery.resuming import digest
from surgery.tasks.collection import load_tasks
from surgery.tuning.finetuning import tune
from surgery.tuning.recipe import Recipe

NOTE = "study.json"


def run_study(
    base: str | Path | Checkpoint,
    data_root: str | Path,
    settings: Settings,
    folder: str | Path,
    *,
    device: str | torch.device | None = None,
    progress: Progress = silent,
) -> Study:
    """Study the skills of several tasks in one base: located, overlapping, transferred, learnt in a row and merged.

    The folder is written as the study goes: each stage that is done is kept there and skipped when the same call is given
    again, so a kill loses no more than the stage in hand, and of its tuning half a minute. `report.json` is written after
    every stage, the page and its figures at the end.

    Args:
        data_root: a folder with a folder a task: `sst2/train.jsonl`, `sst2/test.jsonl` and so on.
        folder: a new one, or an earlier run's of the same base, data and settings.

    Raises:
        OptionError: a folder with something else in it, or a study of other settings, saying what differs.
        TaskError, CheckpointError: as loading tasks and the base does.
    """
    folder, checkpoint, place = Path(folder).absolute(), open_checkpoint(base), pick_device(device)
    check_apart(folder, checkpoint.folder, Path(data_root))
    call = identity(checkpoint, Path(data_root), settings)
    with hold(folder):
        _claim(folder, call)
        bench = Bench(checkpoint, Path(data_root), settings, folder, place, progress)
        planned = plan(settings, Path(data_root))
        for number, stage in enumerate(planned):
            if not (file := folder / "stages" / f"{stage.name}.json").exists():
                _do(bench, stage, file, f"{number + 1} of {len(planned)}, {stage.name}", progress)
                study(folder, checkpoint, settings, planned).write_report()
        found = study(folder, checkpoint, settings, planned)
        found.write()
    return found


def plan(settings: Settings, data_root: Path) -> list[Stage]:
    """All stages of a study in the order of work."""
    tasks = load_tasks(settings.tasks, data_root, ("train", "test"), max_length=settings.max_length)
    for task in tasks:
        task.need("test")
    return stages(settings, alike({task.name: task.labels for task in tasks}))


def tuning_seconds(
    base: Checkpoint, data_root: Path, settings: Settings, device: str | torch.device | None = None
) -> float:
    """How long tuning on one task takes here, from four of its steps."""
    task = load_tasks(settings.tasks[:1], data_root, ("train",), shots=settings.shots, max_length=settings.max_length)[
        0
    ]
    times: list[float] = []
    tune(base, task, Recipe(steps=5), device=device, progress=lambda *_: times.append(time.monotonic()))
    steps = Recipe(steps=settings.steps).pace("encoder", 1, len(task.train), 0.0).steps
    return (times[-1] - times[0]) / (len(times) - 1) * steps


def left(folder: Path, planned: list[Stage]) -> list[Stage]:
    """The stages that aren't done."""
    return [stage for stage in planned if not (folder / "stages" / f"{stage.name}.json").exists()]


def identity(checkpoint: Checkpoint, data_root: Path, settings: Settings) -> dict[str, Any]:
    """All that decides a study's result, as JSON."""
    tasks = load_tasks(settings.tasks, data_root, ("train", "test"), max_length=settings.max_length)
    data = {task.name: digest([task.train, task.test, task.spec()]) for task in tasks}
    return {"base": checkpoint.fingerprint, "data": data, **asdict(settings), "surgery": package_version("surgery")}


def check_same(folder: Path, call: dict[str, Any]) -> None:
    """Refuse a folder that is there and isn't this study's, saying what differs."""
    note = folder / NOTE
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        held = load_json(note, dict[str, Any])
    except (OSError, JsonError):
        raise OptionError(f"{folder} is there and is no study: name another output") from None
    wanted = json.loads(json.dumps(call))
    differing = sorted(key for key in wanted.keys() | held.keys() if wanted.get(key) != held.get(key))
    if differing:
        told = ", ".join(f"{key} ({_short(held.get(key))} there, {_short(wanted.get(key))} now)" for key in differing)
        raise OptionError(f"{folder} is a study of other options: {told}; name another output or the same options")


def _claim(folder: Path, call: dict[str, Any]) -> None:
    check_same(folder, call)
    if not (folder / NOTE).exists():
        replace_json(folder / NOTE, call)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _do(bench: Bench, stage: Stage, file: Path, where: str, progress: Progress) -> None:
    def told(done: int, total: int, line: str) -> None:
        progress(done, total, f"stage {where}: {line}")

    began, bench.progress = time.monotonic(), told
    scratch = file.with_suffix(".partial")
    scratch.mkdir(parents=True, exist_ok=True)
    found = run_stage(bench, stage, scratch)
    replace_json(file, {**found, "seconds": round(time.monotonic() - began, 2)})
    clear(scratch)


def study(folder: Path, checkpoint: Checkpoint, settings: Settings, planned: list[Stage]) -> Study:
    """What the stages that are done have found."""
    found = {}
    for stage in planned:
        file = folder / "stages" / f"{stage.name}.json"
        if file.exists():
            try:
                found[stage] = load_json(file, dict[str, Any])
            except JsonError as error:
                raise SkillError(f"{file} can't be read ({error}): delete it, and the stage is done again") from None
    origin = provenance(call={"study": asdict(settings)}, inputs={"base": checkpoint.fingerprint})
    return Study.of(folder, settings, found, len(planned), origin)
