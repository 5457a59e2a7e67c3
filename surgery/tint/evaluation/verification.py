"""verify: every simulated piece against the Hugging Face model, and every tensor's update against autograd."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.errors import TintError
from surgery.files import new_folder, replace_bytes, replace_json
from surgery.jsonfile import conform, load_json
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.reporting.markdown import table
from surgery.resuming import digest
from surgery.tint.auxiliary import Auxiliary, Block, fingerprint_of, load_named, name_of
from surgery.tint.block import forward
from surgery.tint.descent import DivergedError
from surgery.tint.evaluation.reference import autograd, plain_logits
from surgery.tint.inputs import as_ids, as_mask
from surgery.tint.modules import Arithmetic, affine, linear
from surgery.tint.segments import Plan
from surgery.tint.shape import Shape
from surgery.tint.simulator import TinT

_FORMAT = "surgery tint verification 1"
_STEPS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 1e-1)
_SCALES = (1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


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


class _Content(TypedDict):
    """What `report.json` holds, as far as the tables read it."""

    logits_error: float
    forward: list[_Piece]
    updates: dict[str, dict[str, list[_Update]]]


@dataclass(frozen=True, eq=False)
class Verification:
    """What `verify` found.

    Attributes:
        content: everything, as it is saved. `content["forward"]`: the largest error of each piece of each block, relative to
            the largest value; `content["updates"]`: mode -> oracle -> one entry a tensor with `cosine`, `norm_ratio` and
            `relative_error`; `content["approximations"]`: each alone against full autograd; `content["sweep"]`.
    """

    content: Mapping[str, Any]

    @property
    def forward_error(self) -> float:
        """Of the logits, the largest, absolute."""
        return self.content["logits_error"]

    def worst(self, mode: str, oracle: str) -> dict[str, float]:
        """The lowest cosine and the largest relative error of a mode's updates against an oracle (`full` or `detached`)."""
        return _worst(self.content["updates"][mode][oracle])

    @property
    def caption(self) -> str:
        """Of the table."""
        return (
            "The worst block of each piece. Forward: largest error relative to the piece's largest value. Updates, against autograd "
            "(exact) or autograd with detached attention scores (paper, published): relative error, cosine, and norm as a "
            "multiple of autograd's. A dash: doesn't learn."
        )

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows: each piece's worst block, forward and (against the oracle that fits the mode) update."""
        columns = ["", "forward", "exact: error", "paper: cosine", "norm", "error", "published: cosine", "norm"]
        names = dict.fromkeys(entry["piece"] for entry in self.content["forward"])
        tensors = dict.fromkeys(entry["tensor"] for entry in self.content["updates"]["exact"]["full"])
        rows = []
        for name in names:
            error = max(e["error"] for e in self.content["forward"] if e["piece"] == name)
            leaves = [tensor for tensor in tensors if tensor.rpartition(".")[0] == name]
            rows.append([name, f"{error:.1e}", *[""] * 6])
            rows += [[f"  {leaf}", "", *self._cells(leaf)] for leaf in leaves]
        rows.append(["logits (absolute)", f"{self.forward_error:.1e}", *[""] * 6])
        return columns, rows

    def _cells(self, tensor: str) -> list[str]:
        cells: list[str] = []
        for mode, oracle in (("exact", "full"), ("paper", "detached"), ("published", "detached")):
            entries = [
                entry
                for entry in self.content["updates"].get(mode, {}).get(oracle, ())
                if entry["tensor"] == tensor and entry["cosine"] is not None and entry["learns"]
            ]
            width = {"exact": 1, "paper": 3, "published": 2}[mode]
            if not entries:
                cells += ["-"] * width
                continue
            lowest = min(entries, key=lambda entry: entry["cosine"])
            error = f"{max(entry['relative_error'] for entry in entries):.1e}"
            pair = [
                f"{lowest['cosine']:.6f}",
                f"{max(entries, key=lambda e: abs(e['norm_ratio'] - 1))['norm_ratio']:.3f}",
            ]
            cells += [error] if mode == "exact" else [*pair, error][:width]
        return cells

    @property
    def summary(self) -> list[str]:
        """What it comes to, one sentence each."""
        exact, lines = self.worst("exact", "full"), [f"logits: within {self.forward_error:.1e} of the plain model"]
        where = self._where("exact", "full", "relative_error", max)
        lines.append(f"exact against autograd: relative error at most {exact['relative_error']:.1e} ({where})")
        for mode in ("paper", "published"):
            if mode in self.content["updates"]:
                detached, full = self.worst(mode, "detached"), self.worst(mode, "full")
                lines.append(
                    f"{mode} against autograd with detached scores: cosine at least {detached['cosine']:.6f} "
                    f"({self._where(mode, 'detached', 'cosine', min)}); against full autograd, through scores too, at least {full['cosine']:.4f}"
                )
        return lines

    def _where(self, mode: str, oracle: str, key: str, pick: Any) -> str:
        """The block and tensor of a mode's worst figure."""
        learn = [e for e in self.content["updates"][mode][oracle] if e["cosine"] is not None and e["learns"]]
        entry = pick(learn, key=lambda e: e[key])
        return f"block {entry['layer']}'s {entry['tensor']}"

    def markdown(self) -> str:
        """The table, its caption and the summary."""
        columns, rows = self.table()
        lines = table(columns, rows)
        return "\n".join([*lines, "", self.caption, "", *(f"- {line}" for line in self.summary), ""])

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `report.json`, `README.md` with the table, and figures."""
        from surgery.tint.evaluation.figures import draw_verification

        with new_folder(Path(folder), overwrite=overwrite) as staged:
            replace_json(staged / "report.json", {"format": _FORMAT, **self.content})
            drawn = draw_verification(self.content, staged)
            page = ["# The simulation against autograd", "", self.markdown()]
            page += [f"![{path.stem}]({path.name})" for path in drawn]
            replace_bytes(staged / "README.md", ("\n".join(page) + "\n").encode())
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Verification":
        """Read a saved one; raises TintError for anything else."""
        return load_report(Path(folder), _FORMAT, _Content, cls)


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
    plan = Plan.of(ids, mask, shape=auxiliary.shape, device=auxiliary.device)
    halves = auxiliary.dtype not in _DTYPES.values()
    modes = ("exact",) if halves else ("exact", "paper", "published")
    total = 4 + len(modes) + (0 if halves or not sweep else 2 * (1 + len(_STEPS) + len(_SCALES)))
    done = 0

    def tell(line: str) -> None:
        nonlocal done
        done += 1
        progress(min(done, total), total, line)

    pieces, logits_error = _forward_errors(auxiliary, plan)
    tell("forward")
    oracles = {name: autograd(auxiliary, plan, detached=name == "detached") for name in ("full", "detached")}
    tell("autograd")
    updates: dict[str, Any] = {}
    for mode in modes:
        found = TinT.build(auxiliary, mode=mode).gradients(ids, mask)
        updates[mode] = {name: _compare(found, oracle) for name, oracle in oracles.items()}
        tell("updates")
    content = {
        **provenance(
            call={"verify": {"model": name_of(model), "sweep": sweep}},
            inputs={**fingerprint_of(model), "tokens": digest([ids.tolist(), mask.tolist()])},
            seed=seed,
        ),
        "shape": vars(auxiliary.shape),
        "dtype": str(auxiliary.dtype).removeprefix("torch."),
        "tokens": ids.shape[1],
        "training_pairs": int(plan.targets.sum()),
        "logits_error": logits_error,
        "forward": pieces,
        "updates": updates,
        "approximations": [] if halves else _each_alone(auxiliary, ids, mask, oracles["full"], tell),
        "sweep": _sweep(auxiliary, ids, mask, tell) if sweep and not halves else [],
    }
    return Verification(content)


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


def outlook(auxiliary: Auxiliary, input_ids: Any, *, sweep: bool = True) -> tuple[float, int]:
    """About how many seconds and bytes `verify` will take on a row of tokens, from one update and from sizes."""
    ids, mask = _one_row(auxiliary.shape, input_ids, None, 0)
    started = time.monotonic()
    found = TinT.build(auxiliary, mode="exact").gradients(ids, mask)
    _compare(found, found)
    one = time.monotonic() - started
    tries = len(_STEPS) + len(_SCALES)
    # In units of one update: pieces and oracles 4, modes and approximations 7; a sweep's in float64 take twice as long.
    seconds = one * (11 + (3 * tries if sweep else 0))
    blocks = sum(tensor.nbytes for block in auxiliary.blocks for tensor in block.values())
    # Two oracles, one update and autograd's leaves with their gradients; the sweep's model, leaves, gradients and update again.
    return seconds, auxiliary.bytes + 5 * blocks + (2 * (auxiliary.bytes + 2 * blocks) if sweep else 0)


def load_report(folder: Path, form: str, kind: Any, made: Callable[[dict[str, Any]], Any]) -> Any:
    """A saved report of a form, of what `kind` types and whose tables can be made; raises TintError for anything else."""
    path = folder / "report.json"
    try:
        content = load_json(path)
    except (OSError, ValueError) as error:
        raise TintError(f"{path} can't be read ({error}): name a folder that `surgery tint` wrote") from None
    if not isinstance(content, dict) or content.pop("format", None) != form:
        raise TintError(f"{path} isn't a {form}'s: name a folder that `surgery tint` wrote")
    try:
        conform(content, kind)
        report = made(content)
        report.markdown()  # some entries may lack what others refer to
    except (KeyError, TypeError, ValueError) as error:
        raise TintError(f"{path} is damaged ({error!r}): make it again") from None
    return report


def _forward_errors(auxiliary: Auxiliary, plan: Plan) -> tuple[list[dict[str, Any]], float]:
    """Each piece of each block against the submodule of the Hugging Face model that does it, and the logits."""
    shape = auxiliary.shape
    theirs: dict[tuple[int, str], Tensor] = {}
    handles = []
    modules = dict(auxiliary.module.named_modules())

    def keep(layer: int, name: str, rows: slice) -> Any:
        return lambda _, inputs, output: theirs.__setitem__((layer, name), output.detach()[..., rows])

    def keep_input(layer: int, name: str) -> Any:
        return lambda _, inputs: theirs.__setitem__((layer, name), inputs[0].detach())

    for layer, sites in enumerate(auxiliary.sites):
        for name, site in sites.items():
            if name.endswith(".weight"):
                module = modules[site.parameter.rpartition(".")[0]]
                piece = name.removesuffix(".weight")
                handles.append(module.register_forward_hook(keep(layer, piece, site.rows)))
                if piece in ("o", "down"):
                    read = "attention" if piece == "o" else "activation"
                    handles.append(module.register_forward_pre_hook(keep_input(layer, read)))
    try:
        with torch.no_grad():
            logits = plain_logits(auxiliary, plan.ids, plan.positions, plan.visible)
    finally:
        for handle in handles:
            handle.remove()
    if not bool(torch.isfinite(logits).all()):
        raise TintError(
            f"the model's own logits are NaN or infinite in {str(auxiliary.dtype).removeprefix('torch.')}: use float32"
        )
    errors = []
    with torch.no_grad():
        x = auxiliary.embed(plan.ids, plan.positions)
        rotation = auxiliary.rotation(x, plan.positions)
        for layer, block in enumerate(auxiliary.blocks):
            x, kept = forward(x, block, shape, rotation, plan.visible)
            a, b = affine(kept.x_normalised, block, "norm1"), affine(kept.middle_normalised, block, "norm2")
            ours = {"norm1": a, **{name: linear(a, block, name) for name in "qkv"}, "attention": kept.attended}
            ours |= {"o": linear(kept.attended, block, "o"), "norm2": b}
            ours["gate" if shape.gated else "up"] = kept.preactivation
            if kept.multiplier is not None:
                ours["up"] = kept.multiplier
            ours |= {"activation": kept.inner, "down": linear(kept.inner, block, "down")}
            for piece, value in ours.items():
                other = theirs[layer, piece].reshape(value.shape)
                largest = float(other.abs().max()) or 1.0  # a piece may be all zeros
                error = float((value - other).abs().max()) / largest
                errors.append({"layer": layer, "piece": piece, "error": error})
        own = F.linear(TinT.build(auxiliary, mode="exact").hidden(plan.ids), auxiliary.head)
    return errors, float((own - logits).abs().max())


def _compare(ours: Sequence[Block], oracle: Sequence[Block]) -> list[dict[str, Any]]:
    """Each tensor's update beside the oracle's. A key's bias has no effect on attention: its true gradient is zero.

    So a tensor whose oracle is zero but for rounding gets no cosine, and its error is relative to its block's largest gradient.
    """
    entries = []
    for layer, (block, truth) in enumerate(zip(ours, oracle, strict=True)):
        largest = max(float(tensor.norm()) for tensor in truth.values())
        for name, wanted in truth.items():
            norm = float(wanted.norm())
            given = block.get(name)
            value = torch.zeros_like(wanted) if given is None else given[0]
            entry: dict[str, Any] = {"layer": layer, "tensor": name, "learns": given is not None}
            if name == "k.bias" or norm <= 1e-12 * largest:
                entry |= {
                    "cosine": None,
                    "norm_ratio": None,
                    "relative_error": float((value - wanted).norm()) / (largest or 1.0),
                }
            else:
                a, b = value.double().flatten(), wanted.double().flatten()
                entry |= {
                    "cosine": float(F.cosine_similarity(a, b, dim=0)),
                    "norm_ratio": float(a.norm() / b.norm()),
                    "relative_error": float((a - b).norm() / b.norm()),
                }
            entries.append(entry)
    return entries


def _worst(entries: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    learn = [entry for entry in entries if entry["cosine"] is not None and entry["learns"]]
    return {
        "cosine": min(entry["cosine"] for entry in learn),
        "relative_error": max(entry["relative_error"] for entry in learn),
    }


def _each_alone(
    auxiliary: Auxiliary, ids: Tensor, mask: Tensor, full: Sequence[Block], tell: Any
) -> list[dict[str, Any]]:
    """One approximation at a time, against full autograd."""
    exact, paper = (Arithmetic.of(mode, auxiliary.dtype) for mode in ("exact", "paper"))
    alone = {
        "score gradients dropped": replace(exact, scores=False),
        "norms by differences": replace(exact, closed_norms=False, step=paper.step),
        "activations by differences": replace(exact, closed_activations=False, step=paper.step),
        "last bias four times": replace(exact, down_bias=4.0),
    }
    alone_errors = []
    simulation = TinT.build(auxiliary, mode="exact")
    for name, arithmetic in alone.items():
        entries = _compare(replace(simulation, arithmetic=arithmetic).gradients(ids, mask), full)
        alone_errors.append({"approximation": name, **_worst(entries), "by_tensor": entries})
    tell("approximations")
    return alone_errors


def _sweep(auxiliary: Auxiliary, ids: Tensor, mask: Tensor, tell: Any) -> list[dict[str, Any]]:
    """Cosine and error against detached scores by step (ours) and by constant scale (the paper's N), and by dtype."""
    points = []
    for dtype, kind in _DTYPES.items():
        other = auxiliary
        if kind != auxiliary.dtype:
            other = Auxiliary.of(auxiliary.module, dtype=kind)
        plan = Plan.of(ids, mask, shape=other.shape, device=other.device)
        oracle = autograd(other, plan, detached=True)
        tell("sweep: autograd")
        simulation = TinT.build(other, mode="paper")
        tries = [{"step": step} for step in _STEPS] + [{"scale": scale} for scale in _SCALES]
        for given in tries:
            arithmetic = replace(simulation.arithmetic, step=given.get("step"), scale=given.get("scale"))
            try:
                ours = replace(simulation, arithmetic=arithmetic).gradients(ids, mask)
                worst = _worst(_compare(ours, oracle))
            except DivergedError:
                worst = {"cosine": 0.0, "relative_error": 1e9}
            points.append({"dtype": dtype, **given, **worst})
            tell("sweep: differences")
    return points
