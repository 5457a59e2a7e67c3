"""Perplexity of a text's windows: the model as it is, dynamic evaluation, and TinT."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from surgery.errors import OptionError, TintError
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.tint.auxiliary import Auxiliary
from surgery.tint.descent import DivergedError
from surgery.tint.reference import dynamic_evaluation
from surgery.tint.report import Run, best, pick_rates
from surgery.tint.segments import check_length
from surgery.tint.simulator import Layers, TinT

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
METHODS = ("frozen", "dynamic evaluation", "TinT paper", "TinT exact", "TinT published")
_USUAL = METHODS[:4]
_RESAMPLES = 2000


def run_text(
    model: Any,
    text: str | Path | Int[Tensor, " tokens"],
    *,
    shares: Sequence[float] = (0.5,),
    lr: float | Sequence[float] | None = None,
    steps: int = 1,
    layers: Layers = "all",
    methods: Sequence[str] = _USUAL,
    window: int = 256,
    windows: int | None = None,
    dev_windows: int = 4,
    batch_size: int = 1,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    progress: Progress = silent,
) -> Run:
    """Cut a text into windows, learn from the first share of each, and measure perplexity on the rest of it.

    Dynamic evaluation is plain gradient descent by autograd: the same tensors, the same summed loss, the same rates to
    choose among. Each window starts from the model as it is.

    Args:
        text: a file, or token ids; a file needs a model with its tokenizer (a folder, a hub id, a loaded `Model`).
        lr: a rate, or several to choose among for each method and share, on the first `dev_windows` windows, which are
            then left out of the figures; default a grid from 1e-5 to 3e-3.
        window: tokens of a window. `windows`: how many to measure on; default all there are.

    Raises:
        TintError: a text too short for its windows, or that needs a tokenizer. OptionError: an option out of range.
    """
    rates = pick_rates(lr, RATES)
    _check_options(shares, methods, window)
    if not isinstance(text, Tensor) and not isinstance(model, Auxiliary):
        model = _loaded(model, device, dtype)
    auxiliary = Auxiliary.of(model, device=device, dtype=dtype)
    ids = text if isinstance(text, Tensor) else _tokens(model, Path(text))
    count = len(ids) // window
    held = dev_windows if len(rates) > 1 else 0
    wanted = count - held if windows is None else windows
    if wanted < 1 or count < held + wanted:
        raise TintError(
            f"the text has {len(ids):,} tokens, which is {count} windows of {window}, but {held + max(wanted, 1)} are needed: give a longer text or lower --window"
        )
    rows = ids[: (held + wanted) * window].view(-1, window).to(auxiliary.device)
    dev, test = rows[:held], rows[held:]
    check_length(torch.tensor([[window - 1]]), auxiliary.shape.positions)
    points = []
    work = _Work(auxiliary, steps, layers, batch_size)
    for method in methods:
        work.simulation(method)  # refused before any work is spent, if it is
    total, done = len(shares) * len(methods), 0
    for share in shares:
        boundary = max(2, round(share * window))
        for method in methods:
            progress(done, total, f"{method} at {share:.0%}")
            rate = None
            if method != "frozen":
                scores = {r: float(work.losses(method, dev, boundary, r).sum()) for r in rates} if held else {}
                rate = best(scores, lowest=True) if held else rates[0]
            losses = work.losses(method, test, boundary, rate)
            done += 1
            points.append(
                {"method": method, "share": share, "lr": rate, **_perplexity(losses, window - boundary, seed)}
            )
    progress(total, total, "done")
    content = {
        **provenance(call={"run": "text", "steps": steps, "layers": str(layers)}, inputs=_inputs(model), seed=seed),
        "kind": "text",
        "window": window,
        "windows": len(test),
        "dev_windows": held,
        "rates": rates,
        "dtype": str(auxiliary.dtype).removeprefix("torch."),
        "points": points,
    }
    return Run(content)


class _Work:
    """The losses of windows after each method."""

    def __init__(self, auxiliary: Auxiliary, steps: int, layers: Layers, batch_size: int) -> None:
        self.auxiliary = auxiliary
        self.steps = steps
        self.batch_size = batch_size
        self.plain = TinT.build(auxiliary, steps, layers, "exact")
        self.layers = layers

    def simulation(self, method: str) -> TinT | None:
        """A TinT method's; None for the others."""
        if not method.startswith("TinT"):
            return None
        return TinT.build(self.auxiliary, self.steps, self.layers, method.removeprefix("TinT "))

    def losses(self, method: str, rows: Tensor, boundary: int, lr: float | None) -> NDArray:
        """Each window's summed loss on the tokens from `boundary` on; infinite where the descent became NaN."""
        found = []
        mask = (torch.arange(rows.shape[1], device=rows.device) < boundary)[None]
        simulation = self.simulation(method)
        for batch in rows.split(1 if method == "dynamic evaluation" else self.batch_size):
            here = mask.expand(batch.shape)
            try:
                if simulation is not None:
                    update = simulation.update(batch, here, lr or 0.0)
                    hidden = simulation.hidden(batch, update.blocks)[:, boundary - 1 : -1]
                    logits = F.linear(hidden, self.auxiliary.head)
                elif method == "dynamic evaluation":
                    logits, _ = dynamic_evaluation(
                        self.auxiliary, batch, here, lr or 0.0, steps=self.steps, layers=self.plain.layers
                    )
                    logits = logits[:, boundary - 1 : -1]
                else:
                    logits = F.linear(self.plain.hidden(batch)[:, boundary - 1 : -1], self.auxiliary.head)
                found.append(_row_losses(logits, batch[:, boundary:]))
            except DivergedError:
                found.append(torch.full((len(batch),), math.inf))  # a rate that is too high loses the choice
        return torch.cat(found).double().numpy()


def _row_losses(logits: Float[Tensor, "batch tokens vocabulary"], targets: Int[Tensor, "batch tokens"]) -> Tensor:
    losses = F.cross_entropy(logits.float().mT, targets, reduction="none").sum(1)
    return losses.nan_to_num(nan=math.inf).cpu()


def _perplexity(losses: NDArray, tokens: int, seed: int) -> dict[str, Any]:
    """The perplexity over all windows, and a bootstrap interval over windows."""
    if not np.isfinite(losses).all():
        raise DivergedError("a descent became NaN or infinite on a test window: lower the learning rate")
    draws = np.random.default_rng(seed).integers(0, len(losses), (_RESAMPLES, len(losses)))
    low, high = np.exp(np.quantile(losses[draws].mean(1) / tokens, (0.025, 0.975)))
    value = float(np.exp(losses.mean() / tokens))
    return {"value": value, "low": float(low), "high": float(high), "losses": (losses / tokens).tolist()}


def _check_options(shares: Sequence[float], methods: Sequence[str], window: int) -> None:
    if window < 4:
        raise OptionError(f"a window of {window} tokens is too short: 4 at least")
    for share in shares:
        if not 0 < share < 1 or round(share * window) >= window:
            raise OptionError(f"training share {share} must lie between 0 and 1 and leave tokens to test on")
    for method in methods:
        if method not in METHODS:
            raise OptionError(f"method {method!r} isn't one of {', '.join(METHODS)}")


def _loaded(model: Any, device: str | None, dtype: str | None) -> Any:
    from surgery.checkpoint import Checkpoint, open_checkpoint
    from surgery.models import load_model
    from surgery.tint.shape import Shape

    if isinstance(model, str | Path | Checkpoint):
        checkpoint = open_checkpoint(model)
        Shape.of_config(checkpoint.config, str(checkpoint))
        return load_model(checkpoint, device=device, dtype=dtype)
    if not hasattr(model, "tokenizer"):
        raise TintError("a text needs a tokenizer: give a folder, a hub id or a loaded Model, or give token ids")
    return model


def load_with_tokens(
    model: str,
    text: Path | None,
    tokens: int,
    *,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
) -> tuple[Any, Int[Tensor, "1 tokens"]]:
    """A loaded model, and one row of a text's first tokens, or of random ones."""
    loaded = _loaded(model, device, dtype)
    if text is None:
        size = len(loaded.tokenizer)
        drawn = torch.randint(size, (1, tokens), generator=torch.Generator().manual_seed(seed))
        return loaded, drawn.to(loaded.device)
    ids = _tokens(loaded, text)
    if len(ids) < tokens:
        raise TintError(f"{text} has {len(ids)} tokens, fewer than the {tokens} asked for")
    return loaded, ids[None, :tokens].to(loaded.device)


def _tokens(model: Any, file: Path) -> Tensor:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TintError(f"{file} can't be read as text ({error})") from error
    ids = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


def _inputs(model: Any) -> dict[str, str]:
    checkpoint = getattr(model, "checkpoint", None)
    return {} if checkpoint is None else {"model": checkpoint.fingerprint}
