"""verify: every simulated piece against the Hugging Face model, and every tensor's update against autograd."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from surgery.errors import TintError
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.reporting.page import Figure, Page, Part, Table, Text
from surgery.reporting.results import Result
from surgery.resuming import digest
from surgery.tint.auxiliary import Auxiliary, fingerprint_of, load_named, name_of
from surgery.tint.evaluation.comparison import (
    DTYPES,
    SCALES,
    STEPS,
    compare,
    each_alone,
    forward_errors,
    worst,
)
from surgery.tint.evaluation.comparison import sweep as sweep_differences
from surgery.tint.evaluation.reference import autograd
from surgery.tint.inputs import as_ids, as_mask
from surgery.tint.reports import load_report, save_report
from surgery.tint.segments import Plan
from surgery.tint.shape import Shape
from surgery.tint.simulator import TinT

_FORMAT = "surgery tint verification 1"
_FITTING = {"exact": "full", "paper": "detached", "published": "detached"}  # the oracle of a mode's own arithmetic
_LEGEND = {
    "piece or tensor": "A step of a block's forward pass, and below it the weights and biases that learn there. The worst of "
    "all blocks is shown; a key's bias, which has no effect on attention, has nothing to show.",
    "forward error": "Largest difference from the Hugging Face model's own submodule, relative to the largest value (of the "
    "logits: absolute).",
    "exact error": "Mode exact, with closed-form derivatives and gradients through attention scores: distance of the update "
    "from autograd's, relative to its norm.",
    "paper 1-cos": "Mode paper, which lets no gradient through attention scores and takes norms and activations by "
    "differences (sections 3 and 4 of the paper): one minus the cosine between the update and autograd's with detached scores. "
    "0 is the same direction, 1 a right angle. Queries and keys don't learn.",
    "paper norm": "Length of that update as a multiple of autograd's.",
    "paper error": "Distance of that update from autograd's, relative to its norm.",
    "published 1-cos": "Mode published, the authors' code with its faults: direction, as for paper.",
    "published norm": "Its length as a multiple of autograd's; a bias that learns four times over shows as 4.",
}


class _Piece(TypedDict):
    layer: int
    piece: str
    error: float


class _Update(TypedDict):
    layer: int
    tensor: str
    learns: bool
    cosine: float | None
    norm_ratio: float | None
    relative_error: float


class _Alone(TypedDict):
    approximation: str
    cosine: float
    relative_error: float


class _Try(TypedDict):
    dtype: str
    step: NotRequired[float]
    scale: NotRequired[float]
    cosine: float
    relative_error: float


class _Content(TypedDict):
    """What `report.json` holds, as far as tables and page read it."""

    logits_error: float
    forward: list[_Piece]
    updates: dict[str, dict[str, list[_Update]]]
    approximations: NotRequired[list[_Alone]]
    sweep: NotRequired[list[_Try]]
    call: NotRequired[dict[str, dict[str, Any]]]


@dataclass(frozen=True, eq=False)
class Verification(Result):
    """How far the simulation is from the Hugging Face model and from autograd.

    Attributes:
        content: everything, as it is saved. `content["forward"]`: the largest error of each piece of each block, relative to
            the largest value; `content["updates"]`: mode -> oracle -> one entry a tensor with `cosine`, `norm_ratio` and
            `relative_error`; `content["approximations"]`: each alone against full autograd; `content["sweep"]`.
    """

    content: Mapping[str, Any]

    @property
    def forward_error(self) -> float:
        """The largest error of a logit, absolute."""
        return self.content["logits_error"]

    def worst(self, mode: str, oracle: str) -> dict[str, float]:
        """The lowest cosine and the largest relative error of a mode's updates against an oracle (`full` or `detached`)."""
        return worst(self.content["updates"][mode][oracle])

    @property
    def summary(self) -> list[str]:
        """A sentence for each mode: how far it is from autograd at worst, and where."""
        exact, where = self.worst("exact", "full"), self._where("exact", "full", "relative_error", max)
        lines = [
            f"Mode exact against autograd: relative error at most {exact['relative_error']:.1e} ({where}); "
            f"logits within {self.forward_error:.1e} of the plain model's."
        ]
        for mode in ("paper", "published"):
            if mode in self.content["updates"]:
                detached, full = self.worst(mode, "detached"), self.worst(mode, "full")
                away = max(
                    (e["relative_error"] for e in self.content["updates"][mode]["detached"] if e["learns"]), default=0.0
                )
                lines.append(
                    f"Mode {mode} against autograd with detached attention scores: 1 - cosine at most {_turned(detached):.1e} "
                    f"({self._where(mode, 'detached', 'cosine', min)}), relative error at most {away:.1e}; against full autograd, through scores too, {_turned(full):.1e}."
                )
        return lines

    def _where(self, mode: str, oracle: str, key: str, pick: Any) -> str:
        """The block and tensor of a mode's worst value."""
        learn = [e for e in self.content["updates"][mode][oracle] if e["cosine"] is not None and e["learns"]]
        entry = pick(learn, key=lambda e: e[key])
        return f"block {entry['layer']}'s {entry['tensor']}"

    @property
    def caption(self) -> str:
        """What the table shows, in a sentence."""
        return "Each piece and each tensor in the block where it is furthest off; empty where nothing learns."

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows: each piece's worst block, forward, and each of its tensors' updates against the mode's own oracle."""
        names = dict.fromkeys(entry["piece"] for entry in self.content["forward"])
        tensors = dict.fromkeys(entry["tensor"] for entry in self.content["updates"]["exact"]["full"])
        blank = [None] * (len(_LEGEND) - 2)
        rows: list[list[Any]] = []
        for name in names:
            error = max(e["error"] for e in self.content["forward"] if e["piece"] == name)
            rows.append([name, error, *blank])
            rows += [[t, None, *self._cells(t)] for t in tensors if t.rpartition(".")[0] == name]
        rows.append(["logits", self.forward_error, *blank])
        return list(_LEGEND), rows

    def _cells(self, tensor: str) -> list[float | None]:
        """A tensor's worst block in each mode: error; direction, norm and error; direction and norm."""
        cells: list[float | None] = []
        for mode, oracle in _FITTING.items():
            entries = [
                entry
                for entry in self.content["updates"].get(mode, {}).get(oracle, ())
                if entry["tensor"] == tensor and entry["cosine"] is not None and entry["learns"]
            ]
            turned = norm = error = None
            if entries:
                turned = max(map(_turned, entries))
                norm = max((entry["norm_ratio"] for entry in entries), key=lambda ratio: abs(ratio - 1))
                error = max(entry["relative_error"] for entry in entries)
            cells += {"exact": [error], "paper": [turned, norm, error], "published": [turned, norm]}[mode]
        return cells

    def page(self, figures: Sequence[Figure] = ()) -> Page:
        """The report for people."""
        parts: list[Part] = [*figures, Table(self.caption, *self.table(), legend=_LEGEND, folded=False)]
        if alone := self.content.get("approximations"):
            rows = [[e["approximation"], e["cosine"], e["relative_error"]] for e in alone]
            parts.append(Table("One approximation at a time.", list(_ALONE), rows, legend=_ALONE))
        if tries := self.content.get("sweep"):
            rows = [[e["dtype"], e.get("step"), e.get("scale"), e["cosine"], e["relative_error"]] for e in tries]
            caption = "Steps of the differences in mode paper, against autograd with detached scores."
            parts.append(Table(caption, list(_SWEEP), rows, legend=_SWEEP))
        return Page("The simulation against autograd", self.summary, [*parts, self._made()])

    def _made(self) -> Text:
        """How it was measured; reports of which some of it is missing say less."""
        said = {key: self.content.get(key) for key in ("tokens", "training_pairs", "dtype")}
        call = self.content.get("call", {}).get("verify", {})
        return Text(
            f"Model {call.get('model', 'unknown')} in {said['dtype']}; one row of {said['tokens']} tokens, "
            f"{said['training_pairs']} pairs of neighbouring tokens learnt, one step of descent. All values are in report.json."
        )

    def markdown(self) -> str:
        """The page, without figures, as Markdown."""
        return self.page().markdown()

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `report.json`, figures, and the page as `index.html` and `README.md`."""
        from surgery.tint.evaluation.figures import draw_verification

        def draw(staged: Path) -> list[Figure]:
            return draw_verification(self.content, staged)

        return save_report(folder, _FORMAT, self.content, draw=draw, page=self.page, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path) -> "Verification":
        """Read a saved one; raises TintError for anything else."""
        return load_report(folder, _FORMAT, _Content, cls, cls.markdown)


def _turned(entry: Mapping[str, Any]) -> float:
    """One minus the cosine, which rounding may have put above one."""
    return max(0.0, 1 - entry["cosine"])


_ALONE = {
    "approximation": "The one thing done as the paper or its code does; all else is exact.",
    "cosine": "Between the update and full autograd's, of the worst tensor that learns.",
    "relative error": "Distance from full autograd's update, relative to its norm, of the worst tensor that learns.",
}
_SWEEP = {
    "dtype": "Precision of the model.",
    "step": "Size of the difference relative to each token, two-sided: what mode paper does.",
    "constant N": "One N for all, one-sided, N (f(x + g/N) - f(x)): what the paper says.",
    "cosine": "Between update and autograd's, of the worst tensor; 0 also where the update was infinite.",
    "relative error": "Distance from autograd's update, relative to its norm, of the worst tensor.",
}


def verify(
    model: Any,
    input_ids: Any = None,
    train_mask: Any = None,
    *,
    sweep: bool = True,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    progress: Progress = silent,
) -> Verification:
    """Hold every piece against the Hugging Face model and every tensor's update against autograd.

    Args:
        input_ids: one row of tokens, as `TinT` takes them; default 64 random ones, by `seed`.
        train_mask: the training tokens; default the first three quarters.
        device, dtype: as `TinT.build` takes them.
        sweep: also try steps and constant scales of differences, in float32 and float64.

    Raises:
        TintError: as building the simulation does.
    """
    model = load_named(model, device=device, dtype=dtype)
    auxiliary = Auxiliary.of(model, device=device, dtype=dtype)
    ids, mask = _one_row(auxiliary.shape, input_ids, train_mask, seed)
    content = {
        **provenance(
            call={"verify": {"model": name_of(model), "sweep": sweep}},
            inputs={**fingerprint_of(model), "tokens": digest([ids.tolist(), mask.tolist()])},
            seed=seed,
        ),
        "shape": vars(auxiliary.shape),
        "dtype": str(auxiliary.dtype).removeprefix("torch."),
        "tokens": ids.shape[1],
        **_compare_all(auxiliary, ids, mask, progress, sweep=sweep),
    }
    return Verification(content)


def _compare_all(auxiliary: Auxiliary, ids: Tensor, mask: Tensor, progress: Progress, *, sweep: bool) -> dict[str, Any]:
    """Forward pass, updates by mode, each approximation alone and the sweep, as they are reported."""
    plan = Plan.of(ids, mask, shape=auxiliary.shape, device=auxiliary.device)
    halves = auxiliary.dtype not in DTYPES.values()  # which can't resolve differences
    modes = ("exact",) if halves else tuple(_FITTING)
    total = 4 + len(modes) + (0 if halves or not sweep else 2 * (1 + len(STEPS) + len(SCALES)))
    done = 0

    def tell(line: str) -> None:
        nonlocal done
        done += 1
        progress(min(done, total), total, line)

    pieces, logits_error = forward_errors(auxiliary, plan)
    tell("forward")
    oracles = {name: autograd(auxiliary, plan, detached=name == "detached") for name in ("full", "detached")}
    tell("autograd")
    updates: dict[str, Any] = {}
    for mode in modes:
        ours = TinT.build(auxiliary, mode=mode).gradients(ids, mask)
        updates[mode] = {name: compare(ours, oracle) for name, oracle in oracles.items()}
        tell("updates")
    return {
        "training_pairs": int(plan.targets.sum()),
        "logits_error": logits_error,
        "forward": pieces,
        "updates": updates,
        "approximations": [] if halves else each_alone(auxiliary, ids, mask, oracles["full"], tell),
        "sweep": sweep_differences(auxiliary, ids, mask, tell) if sweep and not halves else [],
    }


def outlook(auxiliary: Auxiliary, input_ids: Any, *, sweep: bool = True) -> tuple[float, int]:
    """About how many seconds and bytes `verify` will take on a row of tokens, from one update and from sizes."""
    ids, mask = _one_row(auxiliary.shape, input_ids, None, 0)
    started = time.monotonic()
    update = TinT.build(auxiliary, mode="exact").gradients(ids, mask)
    compare(update, update)
    one = time.monotonic() - started
    tries = len(STEPS) + len(SCALES)
    # In units of one update: pieces and oracles 4, modes and approximations 7; a sweep's in float64 take twice as long.
    seconds = one * (11 + (3 * tries if sweep else 0))
    blocks = sum(tensor.nbytes for block in auxiliary.blocks for tensor in block.values())
    # Two oracles, one update and autograd's leaves with their gradients; the sweep's model, leaves, gradients and update again.
    return seconds, auxiliary.bytes + 5 * blocks + (2 * (auxiliary.bytes + 2 * blocks) if sweep else 0)


def _one_row(shape: Shape, input_ids: Any, train_mask: Any, seed: int) -> tuple[Tensor, Tensor]:
    """The row and its training tokens, [1, tokens] on the CPU; random tokens and the first three quarters where not given."""
    if input_ids is None:
        length = min(64, shape.positions)
        input_ids = torch.randint(shape.vocabulary, (1, length), generator=torch.Generator().manual_seed(seed))
    ids = as_ids(input_ids, shape.vocabulary)
    if len(ids) != 1:
        raise TintError(f"verify takes one row of tokens, not {len(ids)}")
    mask = as_mask(train_mask, ids, "train_mask")
    return ids, torch.arange(ids.shape[1])[None] < 3 * ids.shape[1] // 4 if mask is None else mask
