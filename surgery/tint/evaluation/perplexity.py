"""Perplexity of a text's windows: the model as it is, dynamic evaluation, and TinT."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from surgery.errors import OptionError
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.resuming import Memo, digest, resumable
from surgery.tint.auxiliary import Auxiliary, fingerprint_of, load_named, name_of
from surgery.tint.descent import DivergedError
from surgery.tint.evaluation.reference import descend
from surgery.tint.evaluation.report import Run, best, difference, pick_rates
from surgery.tint.evaluation.texts import bos_token, cut_windows, load_whole, read_text, tokenize
from surgery.tint.inputs import as_ids
from surgery.tint.modules import check_mode
from surgery.tint.segments import Plan, check_length
from surgery.tint.simulator import BlockNumbers, TinT, check_steps

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
WINDOW = 256  # unless the model has fewer positions
METHODS = ("frozen", "dynamic evaluation", "TinT paper", "TinT exact", "TinT published")
USUAL = METHODS[:4]
_RESAMPLES = 2000


# Long: many options, each with its line of documentation; the body is four steps.
def run_text(
    model: Any,
    text: Any,
    *,
    shares: Sequence[float] = (0.5,),
    lr: float | Sequence[float] | None = None,
    steps: int = 1,
    layers: BlockNumbers = "all",
    methods: Sequence[str] = USUAL,
    window: int | None = None,
    windows: int | None = None,
    dev_windows: int = 4,
    batch_size: int = 1,
    start_token: bool | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    resume: str | Path | None = None,
    progress: Progress = silent,
) -> Run:
    """Cut a text into windows, learn from the first share of each, and measure perplexity on the rest of it.

    Dynamic evaluation is plain gradient descent by autograd: the same tensors, the same summed loss, the same rates to
    choose among. Each window starts from the model as it is.

    Args:
        text: a file, or token ids in a row (a tensor, an array or a list); a file needs a model with its tokenizer (a
            folder, a hub id, a loaded `Model`).
        shares: of each window's tokens, those to learn from, between 0 and 1; perplexity is measured for each share.
        lr: a rate, or several to choose among for each method and share, on the first `dev_windows` windows, which are
            then left out of the perplexity; default a grid from 1e-5 to 3e-3.
        steps: steps of descent on a window's training tokens.
        layers: the blocks that learn, as `TinT.build` takes them.
        methods: of `METHODS`.
        window: tokens of a window, by default 256 or what the model has positions for. `windows`: how many to measure on;
            default all there are.
        batch_size: windows that TinT takes at once, each with an update of its own.
        start_token: begin each window with the token that begins a text, which is then one of the window's; default what
            the tokenizer does by itself. Token ids are taken as they are.
        seed: of the bootstrap over windows.
        device, dtype: as `TinT.build` takes them.
        resume: a folder for the losses of the windows that are done; a later call with the same arguments goes on from
            there. The caller deletes it. Needs a model with a fingerprint: a folder, a hub id or a loaded `Model`.

    Raises:
        TintError: a text too short for its windows, or that needs a tokenizer; a descent that became NaN on a window that
            is measured. OptionError: an option out of range.
    """
    rates = pick_rates(lr, RATES)
    held = dev_windows if len(rates) > 1 else 0
    check_options(shares, methods, window, batch_size, steps)
    if len(rates) > 1 and held < 1:
        raise OptionError("several learning rates, and no windows to choose by: give `dev_windows` or one `lr`")
    model, auxiliary, start, ids = _read(model, text, start_token, device, dtype)
    if window is None:
        window = min(WINDOW, auxiliary.shape.positions)
        check_options(shares, methods, window, batch_size, steps)
    check_length(torch.tensor([[window - 1]]), auxiliary.shape.positions)
    rows = cut_windows(ids, window, start=start, held=held, windows=windows).to(auxiliary.device)
    asked = {
        "model": name_of(model),
        "text": str(text) if isinstance(text, str | Path) else "token ids",
        "start_token": None if start is None else model.tokenizer.convert_ids_to_tokens(start),
        "shares": list(shares),
        "lr": list(rates),
        "steps": steps,
        "layers": layers if isinstance(layers, str) else list(layers),
        "methods": list(methods),
        "window": window,
        "windows": len(rows) - held,
        "dev_windows": held,
        "batch_size": batch_size,
        "dtype": str(auxiliary.dtype).removeprefix("torch."),
    }
    inputs = {**fingerprint_of(model, resume), "tokens": digest(rows.tolist())}
    with resumable(resume, {**asked, **inputs}) as state:
        known = Memo(state and state / "figures.jsonl")
        evaluation = Evaluation(auxiliary, rows, methods, steps, layers, batch_size, known)
        points = evaluation.points(shares, rates, held, seed, progress)
    content = {
        **provenance(call={"run_text": asked}, inputs=inputs, seed=seed),
        "kind": "text",
        **{key: asked[key] for key in ("window", "windows", "dev_windows")},
        "rates": rates,
        **{key: asked[key] for key in ("dtype", "start_token")},
        "points": points,
    }
    return Run(content)


def _read(
    model: Any, text: Any, begun: bool | None, device: str | torch.device | None, dtype: str | torch.dtype | None
) -> tuple[Any, Auxiliary, int | None, Int[Tensor, " tokens"]]:
    """The model, loaded and taken apart, the token to begin windows with, and the text's token ids."""
    written = read_text(Path(text)) if isinstance(text, str | Path) else None
    if written is None and begun:
        raise OptionError("`start_token` goes with a text: put the start token's id among the token ids")
    model = (load_named if written is None else load_whole)(model, device=device, dtype=dtype)
    auxiliary = Auxiliary.of(model, device=device, dtype=dtype)
    if written is None:
        return model, auxiliary, None, as_ids(text, auxiliary.shape.vocabulary, "text")[0]
    return model, auxiliary, bos_token(model.tokenizer, begun), tokenize(model, written)


def _compare_with_frozen(points: list[dict[str, Any]]) -> None:
    """Add to each method that learns what it gains on the frozen model, where that was run: nats a token, paired by window."""
    frozen = {point["share"]: point["losses"] for point in points if point["method"] == "frozen"}
    for point in points:
        if point["method"] != "frozen" and point["share"] in frozen:
            pairs = zip(frozen[point["share"]], point["losses"], strict=True)
            point |= difference([before - after for before, after in pairs])


class Evaluation:
    """Windows of a text, and their losses after each method."""

    def __init__(
        self,
        auxiliary: Auxiliary,
        rows: Int[Tensor, "windows tokens"],
        methods: Sequence[str],
        steps: int,
        layers: BlockNumbers,
        batch_size: int,
        known: Memo,
    ) -> None:
        self.auxiliary = auxiliary
        self.rows = rows
        self.methods = methods
        self.steps = steps
        self.batch_size = batch_size
        self.known = known
        self.plain = TinT.build(auxiliary, steps, layers, "exact")
        # Built, and refused, before any work is spent.
        self.simulations = {
            method: TinT.build(auxiliary, steps, layers, method.removeprefix("TinT "))
            for method in methods
            if method.startswith("TinT")
        }

    def points(
        self, shares: Sequence[float], rates: Sequence[float], held: int, seed: int, progress: Progress
    ) -> list[dict[str, Any]]:
        """An entry for each share and method: its perplexity on all but the `held` windows, at the rate chosen on these."""
        measured, window = len(self.rows) - held, self.rows.shape[1]
        choosing = held * len(rates)
        total = len(shares) * sum(measured + choosing * (method != "frozen") for method in self.methods)
        done = 0
        points = []
        for share in shares:
            boundary = round(share * window)
            for method in self.methods:

                def tell(more: int, line: str = f"{method} at {share:.0%}") -> None:
                    nonlocal done
                    done += more
                    progress(done, total, line)

                tell(0)
                rate = None if method == "frozen" else self._rate(method, boundary, rates, held, tell)
                losses = self.losses(method, range(held, len(self.rows)), boundary, rate, tell)
                point = {"method": method, "share": share, "lr": rate}
                points.append(point | _perplexity(losses, window - boundary, seed))
        progress(total, total, "done")
        _compare_with_frozen(points)
        return points

    def _rate(
        self, method: str, boundary: int, rates: Sequence[float], held: int, tell: Callable[[int], None]
    ) -> float:
        """The rate with the lowest loss on the first `held` windows; one alone isn't chosen."""
        if not held:
            return rates[0]
        scores = {r: self.losses(method, range(held), boundary, r, tell, dev=True).sum() for r in rates}
        return best({r: float(score) for r, score in scores.items()}, lowest=True)

    def losses(
        self,
        method: str,
        windows: range,
        boundary: int,
        lr: float | None,
        tell: Callable[[int], None],
        *,
        dev: bool = False,
    ) -> NDArray:
        """Each window's summed loss on the tokens from `boundary` on.

        Where a descent becomes NaN a development window's is infinite, so that the rate isn't chosen; else it raises
        DivergedError.
        """
        losses: list[float] = []
        for first in windows[:: 1 if method == "dynamic evaluation" else self.batch_size]:
            last = min(first + (1 if method == "dynamic evaluation" else self.batch_size), windows.stop)
            find = partial(self._find, method, first, last, boundary, lr, dev)
            losses += self.known.get((method, boundary, lr, first), find)
            tell(last - first)
        return np.array(losses)

    def _find(self, method: str, first: int, last: int, boundary: int, lr: float | None, dev: bool) -> list[float]:
        batch = self.rows[first:last]
        try:
            losses = self.row_losses(method, self.plan(batch, boundary), boundary, lr)
        except DivergedError:
            if not dev:
                raise
            return [math.inf] * len(batch)
        if not dev and not bool(torch.isfinite(losses).all()):
            raise DivergedError(
                f"{method}: the loss of window {first + int((~torch.isfinite(losses)).long().argmax())} is NaN or infinite: "
                + ("use another dtype" if lr is None else f"lower the learning rate (now {lr:g})")
            )
        return losses.double().tolist()

    def plan(self, batch: Int[Tensor, "batch tokens"], boundary: int) -> Plan:
        """Windows put in order, of which the tokens before `boundary` are learnt."""
        mask = (torch.arange(batch.shape[1], device=batch.device) < boundary).expand(batch.shape)
        return Plan.of(batch, mask, shape=self.auxiliary.shape, device=self.auxiliary.device, whole=True)

    def row_losses(self, method: str, plan: Plan, boundary: int, lr: float | None) -> Float[Tensor, " batch"]:
        """Each row's summed loss on the tokens from `boundary` on, after the update on those before; on the CPU."""
        read = slice(boundary - 1, -1)
        if method == "dynamic evaluation":
            layers = self.plain.layers
            logits = descend(self.auxiliary, plan, lr or 0.0, steps=self.steps, layers=layers)[0][:, read]
        else:
            simulation = self.simulations.get(method)
            blocks = None if simulation is None else simulation.learn(plan, lr or 0.0).blocks
            logits = F.linear(self.plain.hidden(plan.ids, blocks)[:, read], self.auxiliary.head)
        losses = F.cross_entropy(logits.float().mT, plan.ids[:, boundary:], reduction="none").sum(1)
        return losses.nan_to_num(nan=math.inf).cpu()


def _perplexity(losses: NDArray, tokens: int, seed: int) -> dict[str, Any]:
    """The perplexity over all windows, and a bootstrap interval over windows."""
    draws = np.random.default_rng(seed).integers(0, len(losses), (_RESAMPLES, len(losses)))
    low, high = np.exp(np.quantile(losses[draws].mean(1) / tokens, (0.025, 0.975)))
    value = float(np.exp(losses.mean() / tokens))
    return {"value": value, "low": float(low), "high": float(high), "losses": (losses / tokens).tolist()}


def check_options(
    shares: Sequence[float], methods: Sequence[str], window: int | None, batch_size: int, steps: int
) -> None:
    """Raise OptionError for options out of range, before the model is loaded; a default window is known only then (None)."""
    if window is not None and window < 4:
        raise OptionError(f"a window of {window} tokens is too short: 4 at least")
    if batch_size < 1:
        raise OptionError(f"`batch_size` {batch_size} must be at least 1")
    check_steps(steps)
    for share in shares:
        if not 0 < share < 1:
            raise OptionError(f"training share {share} must lie between 0 and 1, such as 0.5 for half of each window")
        if window is not None and not 2 <= round(share * window) < window:
            raise OptionError(
                f"training share {share} must leave two of the {window} tokens of a window to learn from and one to test on"
            )
    for method in methods:
        if method.startswith("TinT "):
            check_mode(method.removeprefix("TinT "))
        elif method not in METHODS:
            raise OptionError(f"method {method!r} isn't one of {', '.join(METHODS)}")
