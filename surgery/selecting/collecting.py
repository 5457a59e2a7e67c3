"""One pass over a pool: warm-up, then a shard of features after the other; what a kill leaves is gone on from, with the same bytes."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint
from surgery.checkpoints.models import Model, load_model
from surgery.devices import pick_device
from surgery.errors import OptionError, SelectionError
from surgery.files import check_output, replace_bytes, replace_json, take_name
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.reporting.plural import number_of
from surgery.resuming import CALL, digest, read_state, resumable, state_folder
from surgery.selecting.lora import ADAPTER, same_base
from surgery.selecting.maps import MAPS
from surgery.selecting.opening import Instrument
from surgery.selecting.seals import digest_of, opened, sealed
from surgery.selecting.shards import (
    FORMAT,
    GRADIENT,
    PRECISIONS,
    Header,
    Store,
    about_rows,
    pack,
    shard_count,
    shard_file,
)
from surgery.selecting.warmup import Checkpoints, Warmup, warm_up
from surgery.sync import ranks
from surgery.sync.launch import end_with_parent
from surgery.tasks.objectives import Objective, pick_objective
from surgery.tasks.rows import Row, RowFile, Source

_BEGUN = "begun.json"
_ANSWERS = 1000  # different answers that are told apart
_PACKAGES = ("surgery", "torch", "transformers", "peft")


@dataclass(frozen=True)
class Plan:
    """How features are taken: options of `Features.collect`."""

    maps: tuple[str, ...] = ("adam", "sgd")
    sketch: int = 8192
    precision: str = "float16"
    loss: str = "answer"
    max_length: int = 512
    batch_size: int = 16
    shard_rows: int = 512
    hidden: bool = True
    seed: int = 0
    dtype: str | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.maps) - set(MAPS) or not self.maps:
            raise OptionError(f"`maps` {unknown if self.maps else 'none'} aren't of {', '.join(MAPS)}")
        if self.precision not in PRECISIONS:
            raise OptionError(f"`precision` {self.precision} isn't one of {', '.join(PRECISIONS)}")
        for name in ("max_length", "batch_size", "shard_rows"):
            if getattr(self, name) < 1:
                raise OptionError(f"`{name}` {getattr(self, name)} must be 1 or more")
        if self.sketch < 0:
            raise OptionError(f"`sketch` {self.sketch} must be a number of buckets, or 0 for none")


def collect(
    base: str | Path | Checkpoint, pool: Source, folder: Path, warmup: Warmup | Checkpoints, plan: Plan,
    *, target: Sequence[Row] = (), device: str | torch.device | None, processes: int, overwrite: bool, progress: Progress = silent,
) -> Store:  # fmt: skip
    """Make a store of a pool's features in a folder, or open the one that the same call made there.

    Rows of a `target` that the model can't learn from are refused before the pass over the pool.
    """
    checkpoint, place = open_checkpoint(base), pick_device(device)
    if isinstance(warmup, Checkpoints):
        same_base(warmup.folder, warmup.base, checkpoint)
    call = _call(checkpoint, pool, warmup, plan)
    if (folder / "report.json").exists():
        made = Store.open(folder)
        if made.header["call"] == call:
            ranks.first_goes_on()
            return made
    if (folder / "report.json").exists() and not overwrite:
        raise OptionError(
            f"{folder} holds features of another pool, base or options: name another folder (`features`), or add `overwrite`"
        )
    check_output(folder, overwrite=overwrite, inputs=[base, pool if isinstance(pool, str | Path) else None])
    if processes > 1 and ranks.several():
        raise OptionError("`processes` is for a run of one, and a launcher started several: leave it out")
    own = state_folder(folder)
    with ranks.first_holds(resumable(own, call, packages=_PACKAGES), own) as state:
        assert state is not None
        if ranks.is_first():
            _begin(state, checkpoint, pool, warmup, plan, call, place, target, progress)
        ranks.meet()  # the adapters are trained, by the first
        header = read_state(state / _BEGUN, Header)
        _collect_shards(state, checkpoint, header, plan, place, processes, progress)
        ranks.first_goes_on()
        replace_json(state / "report.json", _checked(state, header))
        (state / CALL).unlink()
        (state / _BEGUN).unlink()
        folder.parent.mkdir(parents=True, exist_ok=True)
        take_name(state, folder.resolve(), overwrite=overwrite, replaces="report.json")
    return Store.open(folder)


def _call(checkpoint: Checkpoint, pool: Source, warmup: Warmup | Checkpoints, plan: Plan) -> dict[str, Any]:
    if not isinstance(pool, str | Path):
        told: Any = digest([dict(row) for row in pool])
    elif (path := Path(pool).expanduser()).is_file():
        told = digest_of([path])
    else:
        told = str(pool)
    begun = (
        asdict(warmup)
        if isinstance(warmup, Warmup)
        else {"taken": asdict(warmup.warmup), "rates": list(warmup.rates), "weights": digest_of(warmup.files())}
    )
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in begun.items()}
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(plan).items()}
    return {"base": checkpoint.fingerprint, "pool": told, "warmup": digest(plain), "plan": options}


def _begin(
    state: Path, checkpoint: Checkpoint, pool: Source, warmup: Warmup | Checkpoints, plan: Plan, call: dict[str, Any],
    place: torch.device, target: Sequence[Row], progress: Progress,
) -> None:  # fmt: skip
    """Write the pool's rows, the warm-up and the store's header, unless a stopped run left them."""
    note = state / _BEGUN
    if note.exists():
        return
    progress(0, 1, "reading the pool")
    rows = RowFile.write(pool, state / "pool.jsonl")
    model = load_model(checkpoint, device=place, dtype=plan.dtype)
    answers = _answers(rows) if model.kind == "encoder" else []
    if model.kind == "encoder" and not answers:
        raise SelectionError(
            "no row of the pool has an answer (label or completion): a sentence encoder can't do without"
        )
    objective = pick_objective(model, plan.loss, plan.max_length, answers)
    for number, row in enumerate(target, 1):
        objective.encode(row, f"row {number} of the target")
    sources, remarks = _write_about(state, rows, objective, plan, progress)
    shutil.rmtree(state / "warmup", ignore_errors=True)
    if isinstance(warmup, Checkpoints):
        shutil.copytree(warmup.folder, state / "warmup")
        checkpoints = Checkpoints.load(state / "warmup")
        adapter = checkpoints.adapter(model)
    else:
        numbers = warmup.rows(len(rows))
        lessons = [objective.encode(row) for row in rows.rows(numbers)]
        checkpoints = warm_up(model, objective, lessons, warmup, state / "warmup", progress=progress)
        adapter = None
    if 0 in checkpoints.steps:
        remarks.append(
            "A checkpoint is the adapters' start, where B is zero and A's gradients with it: its features come of B's gradients alone."
        )
    weights = adapter.count if adapter else _weights(state / "warmup")
    header: Header = {
        "format": FORMAT, "base": checkpoint.source, "fingerprint": checkpoint.fingerprint, "rows": len(rows),
        "shard_rows": plan.shard_rows, "maps": list(plan.maps), "precision": plan.precision, "sketch": plan.sketch, "seed": plan.seed,
        "length": plan.sketch or weights, "weights": weights, "loss": plan.loss, "max_length": plan.max_length, "answers": answers,
        "sources": sources, "hidden": plan.hidden, "remarks": remarks, "call": call,
        "digest": digest_of([state / "pool.jsonl"]),
        "origin": provenance(call={"select": {"model": checkpoint.source, "warmup": asdict(checkpoints.warmup), **asdict(plan)}},
                             inputs={"base": checkpoint.fingerprint, "pool": str(call["pool"])}, seed=plan.seed),
    }  # fmt: skip
    replace_json(note, header)


def _weights(folder: Path) -> int:
    """Number of an adapter's weights."""
    with opened(folder / "checkpoint-1" / ADAPTER) as file:
        return sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118 (no dictionary)


def _each(rows: RowFile) -> Iterator[Row]:
    for start in range(0, len(rows), 1024):
        yield from rows.rows(range(start, min(start + 1024, len(rows))))


def _answers(rows: RowFile) -> list[str]:
    """The different answers of a pool in the order of their first row, no more than can be told apart."""
    found: dict[str, None] = {}
    for row in _each(rows):
        if row.answers:
            found[row.answers] = None
        if len(found) > _ANSWERS:
            break
    return list(found)


def _write_about(
    state: Path, rows: RowFile, objective: Objective, plan: Plan, progress: Progress
) -> tuple[list[str], list[str]]:
    """Write `rows.safetensors`; every row is encoded once, so that one without an answer is found now. Returns sources and remarks."""
    sources: dict[str, int] = {}
    columns: dict[str, list[int]] = {"key": [], "tokens": [], "source": []}
    cut, wrong = 0, list[SelectionError]()
    for number, row in enumerate(_each(rows)):
        try:
            lesson = objective.encode(row, f"row {number + 1} of the pool")
        except SelectionError as error:
            wrong.append(error)
            continue
        left, whole = lesson.answered
        cut += left < whole
        columns["key"].append(row.key)
        columns["tokens"].append(len(lesson.tokens.ids))
        columns["source"].append(sources.setdefault(row.source, len(sources)))
        if number % 1000 == 0:
            progress(number, len(rows), "reading the pool")
    if wrong:
        more = (
            f"; {number_of(len(wrong) - 1, 'more row')} of {len(rows):,} can't be learnt from either"
            if wrong[1:]
            else ""
        )
        raise SelectionError(f"{wrong[0]}{more}")
    found = {name: torch.tensor(column, dtype=torch.int64) for name, column in columns.items()}
    replace_bytes(state / "rows.safetensors", sealed({**found, "offsets": torch.from_numpy(rows.offsets)}))
    remarks = (
        [f"{cut:,} of {len(rows):,} answers are cut off at {plan.max_length} tokens: what is left counts."]
        if cut
        else []
    )
    return list(sources), remarks


def _collect_shards(
    state: Path,
    checkpoint: Checkpoint,
    header: Header,
    plan: Plan,
    place: torch.device,
    processes: int,
    progress: Progress,
) -> None:
    """Make this rank's shards that aren't there yet, in this process or in several that share them out."""
    mine = range(shard_count(header["rows"], plan.shard_rows))[ranks.my_part()]
    missing = [number for number in mine if not shard_file(state, number).exists()]
    if not missing:
        return
    if processes <= 1 or len(missing) == 1:
        write_shards(state, str(checkpoint.folder), header, plan, str(place), missing, progress=progress)
        return
    from torch import multiprocessing

    context = multiprocessing.get_context("spawn")
    workers = []
    for rank in range(min(processes, len(missing))):
        own = f"cuda:{rank % torch.cuda.device_count()}" if place.type == "cuda" else str(place)
        given = (state, str(checkpoint.folder), header, plan, own, missing[rank::processes], torch.get_num_threads())
        workers.append(context.Process(target=_write_as_child, args=given))
    for worker in workers:
        worker.start()
    for worker in workers:
        while worker.is_alive():
            worker.join(1.0)
            done = sum(shard_file(state, number).exists() for number in missing)
            progress(done, len(missing), "collecting features: shards")
    if any(worker.exitcode for worker in workers):
        raise RuntimeError(
            "a process that collected features failed; what it had done stays, and the same call goes on from there"
        )


def write_shards(
    state: Path, base: str, header: Header, plan: Plan, device: str, numbers: Sequence[int], threads: int | None = None,
    progress: Progress = silent,
) -> None:  # fmt: skip
    """Write some shards of a store under way; what a shard holds depends on its own rows alone."""
    if threads:
        torch.set_num_threads(threads)
    rows = RowFile(state / "pool.jsonl", about_rows(state)["offsets"])
    instrument = open_instrument(state, base, header, plan.batch_size, device, plan.dtype)
    parts = [range(len(rows))[number * plan.shard_rows :][: plan.shard_rows] for number in numbers]
    passes, done = len(instrument.checkpoints), 0
    total = passes * sum(map(len, parts))
    for number, places in zip(numbers, parts, strict=True):
        lessons = [instrument.objective.encode(row) for row in rows.rows(places)]
        content: dict[str, torch.Tensor] = {}
        if plan.hidden:
            content["hidden"] = torch.nn.functional.normalize(instrument.hidden(lessons), dim=1).half()
        for at in range(len(instrument.checkpoints)):

            def told(taken: int, _: int, line: str, before: int = done, at: int = at) -> None:
                progress(before + taken, total, f"collecting features: {line}, checkpoint {at + 1} of {passes}")

            found = instrument.features(lessons, at, plan.maps, told)
            done += len(lessons)
            gradient = found.pop(GRADIENT)[:, 0]
            for name, features in found.items():
                gradient[~features.isfinite().all(1)] = torch.nan
                kept, norms = pack(features.nan_to_num(0.0, 0.0, 0.0), plan.precision)
                content |= {f"{name}.{at}{ending}": part.contiguous() for ending, part in kept.items()}
                content[f"{name}.{at}.norm"] = norms
            content[f"{GRADIENT}.{at}.norm"] = gradient
        replace_bytes(shard_file(state, number), sealed(content))
    progress(total, total, "collecting features")


def _write_as_child(*given: Any) -> None:
    """`write_shards` in a process that ends with the one that started it, however that ends."""
    end_with_parent()
    write_shards(*given)


def open_instrument(
    folder: Path,
    base: str | Path | Checkpoint,
    header: Header,
    batch_size: int = 16,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Instrument:
    """The base with a store's adapters; raises SelectionError for another base."""
    checkpoint = open_checkpoint(base)
    same_base(folder, header["fingerprint"], checkpoint)
    checkpoints = Checkpoints.load(folder / "warmup")
    model: Model = load_model(checkpoint, device=device, dtype=dtype)
    objective = pick_objective(model, header["loss"], header["max_length"], header["answers"])
    adapter = checkpoints.adapter(model)
    return Instrument.of(model, objective, adapter, checkpoints, header["sketch"], header["seed"], batch_size)


def _checked(state: Path, header: Header) -> Header:
    """The header with remarks on rows without gradients; raises SelectionError where no row has any."""
    store = Store(state, header)
    norms = torch.stack([store.norms(f"{GRADIENT}.{at}") for at in range(len(store.checkpoints))])
    zero, broken = int((norms == 0).all(0).sum()), int(norms.isnan().any(0).sum())
    if broken == len(store):
        raise SelectionError("all rows' gradients are NaN or infinite: try `dtype` float32")
    if zero + broken == len(store):
        raise SelectionError(
            "all gradients are zero, so nothing tells the rows apart: warm up (`warmup_share` above 0) or choose other `targets`"
        )
    if zero:
        header["remarks"].append(
            f"{zero:,} rows have no gradient: by plain gradients their scores are 0, by Adam's step those of its momentum."
        )
    if broken:
        header["remarks"].append(
            f"The gradients of {broken:,} rows are NaN or infinite: they are never chosen; try `dtype` float32."
        )
    return header
