"""Features: a pool's gradients on disk, from which rows are selected for any target without another pass."""

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.errors import OptionError, SelectionError
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.reporting.plural import number_of
from surgery.selecting.collecting import Plan, collect, open_instrument
from surgery.selecting.plain import PlainStore
from surgery.selecting.scoring import BASELINES, GRADIENTS, WORDS, Target, best, check_choice, nearest, score_rows
from surgery.selecting.selection import Neighbour, Selection, SourceCount
from surgery.selecting.shards import Header, Store
from surgery.selecting.warmup import Checkpoints, Warmup
from surgery.sync import ranks
from surgery.tasks.rows import Row, Source, read_rows

_SHOWN = 20  # chosen rows with their nearest of the target
_BINS = 40
_TEXTS = 200_000  # rows whose words are compared


@dataclass(frozen=True)
class Features:
    """Features of a pool's rows, in a folder.

    Attributes:
        store: the folder, read a few rows at a time.
    """

    store: Store

    # Long: options and what they mean.
    @classmethod
    def collect(
        cls,
        base: str | Path | Checkpoint,
        pool: Source,
        *,
        target: Source | None = None,
        warmup: Warmup | str | Path | None = None,
        folder: str | Path | None = None,
        maps: Sequence[str] = ("adam", "sgd"),
        sketch: int = 8192,
        precision: str = "float16",
        loss: str = "answer",
        max_length: int = 512,
        batch_size: int = 16,
        shard_rows: int = 512,
        hidden: bool = True,
        seed: int = 0,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        processes: int = 1,
        overwrite: bool = False,
        progress: Progress = silent,
    ) -> "Features":
        """Warm adapters up and take the gradients of each row's own loss at each of their checkpoints.

        The same call goes on from where it was stopped, and opens the folder that it made before.

        Args:
            base: a masked or causal language model, or a sentence encoder.
            pool: a JSONL, CSV, TSV or Parquet file, a dataset id, or rows: `text` with `label`, `prompt` with `completion`, or
                `messages`; `source` says where a row comes from.
            target: rows that are to be selected for; looked at here only so that what is wrong with them is said before the pass.
            warmup: how adapters are trained; or the folder `warmup` of another store of this base.
            folder: where the features are kept; by default until this object is gone.
            maps: `adam` (LESS's), `sgd`, `adam-corrected`; each is a feature of its own.
            sketch: numbers that a gradient is kept as at each checkpoint; 0 keeps all of them.
            precision: float16, int8 or bit (the sign).
            loss: `answer` or, for causal models, the whole `text`.
            max_length: tokens after which a row is cut.
            shard_rows: rows of a file, after each of which a run can be gone on from.
            hidden: keep the base's hidden states too, for a baseline.
            processes: processes that share the shards out; on several GPUs one each. Under a launcher `surgery.sync.ranks` does.

        Raises:
            SelectionError: rows without answers, or whose answers are cut off; gradients that are all zero; another base's warm-up.
            OptionError: an option out of its range; a folder with other features.
        """
        if folder is None and ranks.several():
            raise OptionError("several processes write features into one place: name a folder (`folder`)")
        kept = Path(tempfile.mkdtemp(prefix="surgery-features-")) if folder is None else None
        place = kept / "features" if kept else Path(str(folder)).expanduser()
        begun = Checkpoints.load(Path(warmup).expanduser()) if isinstance(warmup, str | Path) else warmup or Warmup()
        named = None if dtype is None else str(dtype).removeprefix("torch.")
        plan = Plan(tuple(maps), sketch, precision, loss, max_length, batch_size, shard_rows, hidden, seed, named)
        store = collect(
            base, pool, place, begun, plan, target=() if target is None else read_rows(target), device=device,
            processes=processes, overwrite=overwrite, progress=progress,
        )  # fmt: skip
        made = cls(store)
        if kept:
            weakref.finalize(made, shutil.rmtree, kept, ignore_errors=True)
        return made

    @classmethod
    def of_words(cls, pool: Source) -> "Features":
        """Take a pool's rows alone, from which `random`, `length`, `tfidf` and `bm25` choose without any model.

        Raises SelectionError for rows that can't be read, or none.
        """
        kept = Path(tempfile.mkdtemp(prefix="surgery-pool-"))
        try:
            made = cls(PlainStore.write(pool, kept))
        except BaseException:
            shutil.rmtree(kept, ignore_errors=True)
            raise
        weakref.finalize(made, shutil.rmtree, kept, ignore_errors=True)
        return made

    @classmethod
    def load(cls, folder: str | Path) -> "Features":
        """Open a folder of features; raises SelectionError for anything else."""
        return cls(Store.open(folder))

    def __len__(self) -> int:
        return len(self.store)

    def __repr__(self) -> str:
        header = self.store.header
        if not header["maps"]:
            return f"<Features: {number_of(len(self), 'row')}, words alone>"
        what = f"{number_of(len(self), 'row')}, {header['length']:,} numbers of {header['precision']} for each of {' and '.join(header['maps'])}"
        return f"<Features: {what}, of {Path(header['base']).name[:60]}>"

    # Long: options and what they mean.
    def select(
        self,
        target: Source,
        *,
        share: float = 0.05,
        by: str = "less",
        subtasks: str | None = None,
        base: str | Path | Checkpoint | None = None,
        baselines: bool = True,
        batch_size: int = 16,
        seed: int = 0,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        progress: Progress = silent,
    ) -> Selection:
        """Choose the rows of the pool that are nearest to a target's.

        Args:
            target: rows like the pool's; rows of the pool with a target's prompt are left out.
            share: of the pool's rows that are chosen.
            by: `less`, `sgd`, `centred` or `less-centred` (without the pool's mean), `less-corrected` (Adam's own step), or a baseline: random, length, tfidf, bm25, hidden.
            subtasks: field of the target's rows that says which part they belong to; a row's score is the mean over a part, the largest counts.
            base: where the base is now, if it isn't where it was.
            baselines: say how many of the chosen rows each baseline chooses too; `hidden` where a model is asked anyway.
            seed: of the random baseline.

        Raises:
            SelectionError: an empty target, a base with other weights, no row that is left.
            OptionError: an option out of its range.
        """
        header = self.store.header
        check_choice(share, by, header["maps"], header["hidden"])
        rows = read_rows(target, subtasks)
        repeated = self._repeated(rows)
        if repeated.all():
            raise SelectionError("every row of the pool is a row of the target: there is nothing to choose from")
        left_out = repeated | self.store.broken
        wanted: Target | Sequence[Row] = rows
        made: dict[str, Any] = {}
        if by not in WORDS:
            dtype = dtype or header["call"].get("plan", {}).get("dtype")  # as the pool's features
            instrument = open_instrument(self.store.folder, base or header["base"], header, batch_size, device, dtype)
            made = _made(header, instrument.model.kind, self.store.checkpoints.warmup)
            wanted = Target.of(instrument, rows, header["hidden"], progress)
            del instrument
        scores = score_rows(self.store, wanted, by, seed=seed, progress=progress)
        count = max(1, round(share * len(self)))
        chosen = best(scores, count, left_out)
        overlap = self._overlap(wanted, chosen, left_out, count, by, seed, progress) if baselines else {}
        settings = {
            "by": by,
            "share": share,
            "subtasks": subtasks or "subtask",
            "target rows": len(rows),
            **made,
        }
        remarks = [*header["remarks"]]
        if repeated.any():
            remarks.append(
                f"{int(repeated.sum()):,} rows of the pool have the prompt of a row of the target and are left out."
            )
        if len(chosen) < count:
            remarks.append(f"Only {len(chosen):,} rows are left to choose from, fewer than the {count:,} asked for.")
        return self._selection(scores, chosen, wanted, by, share, overlap, remarks, settings)

    def _repeated(self, rows: Sequence[Row]) -> NDArray[np.bool_]:
        return np.isin(self.store.about["key"], np.array([row.key for row in rows], np.int64))

    def _overlap(
        self,
        target: Target | Sequence[Row],
        chosen: NDArray[np.int64],
        left_out: NDArray[np.bool_],
        count: int,
        by: str,
        seed: int,
        progress: Progress,
    ) -> dict[str, float]:
        found = {}
        for name in BASELINES:
            words = name in ("tfidf", "bm25") and len(self) > _TEXTS
            hidden = isinstance(target, Target) and target.hidden is not None
            if name == by or words or (name == "hidden" and not hidden):
                continue
            other = best(score_rows(self.store, target, name, seed=seed, progress=progress), count, left_out)
            found[name] = len(np.intersect1d(other, chosen)) / max(1, len(chosen))
        return found

    def _selection(
        self, scores: NDArray[np.float64], chosen: NDArray[np.int64], target: Target | Sequence[Row], by: str, share: float,
        overlap: Mapping[str, float], remarks: Sequence[str], settings: Mapping[str, Any],
    ) -> Selection:  # fmt: skip
        about, header = self.store.about, self.store.header
        edges = np.linspace(scores.min(), scores.max() if scores.max() > scores.min() else scores.min() + 1, _BINS + 1)
        count = len(header["sources"])
        bins = np.clip(np.searchsorted(edges, scores, "right") - 1, 0, _BINS - 1)
        histograms = np.bincount(about["source"] * _BINS + bins, minlength=count * _BINS).reshape(count, _BINS).tolist()
        taken = np.bincount(about["source"][chosen], minlength=count).tolist()
        sources = [
            SourceCount(name, sum(own), taken[number], tuple(own))
            for number, (name, own) in enumerate(zip(header["sources"], histograms, strict=True))
        ]
        lengths = {"pool": _lengths(about["tokens"]), "chosen": _lengths(about["tokens"][chosen])}
        near: list[Neighbour] = []
        if isinstance(target, Target) and by in GRADIENTS:
            shown = chosen[:_SHOWN].tolist()
            texts = self.store.pool.rows(shown)
            for number, row, (place, cosine) in zip(shown, texts, nearest(self.store, target, by, shown), strict=True):
                other = target.rows[place]
                near.append(Neighbour(number, float(scores[number]), row.source, _told(row), _told(other), cosine))
        origin = provenance(call={"select": dict(settings)}, inputs={"base": header["fingerprint"]})
        return Selection(
            by, len(self), share, tuple(chosen.tolist()), tuple(scores[chosen].tolist()), tuple(sources), tuple(edges.tolist()),
            lengths, overlap, tuple(near), tuple(remarks), settings, tuple(self.store.pool.raw(chosen.tolist())), origin,
        )  # fmt: skip


def _made(header: Header, kind: str, warmup: Warmup) -> dict[str, Any]:
    """How features were made, for a report."""
    told = {"base": header["base"], "kind": kind, "maps": ",".join(header["maps"]), "sketch": header["sketch"]}
    told |= {name: header[name] for name in ("precision", "loss", "max_length")}
    more = {"warm-up's share": warmup.share, "epochs": warmup.epochs, "rate": warmup.rate, "rank": warmup.rank}
    return {**told, **more}


def _lengths(tokens: NDArray[Any]) -> list[float]:
    return [*np.quantile(tokens, (0.25, 0.5, 0.75)).tolist(), float(tokens.mean())]


def _told(row: Row) -> str:
    return f"{row.prompt}\n-> {row.answers}" if row.answers else row.prompt
