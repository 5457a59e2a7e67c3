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

from surgery.errors import OptionError, TintError
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.resuming import Memo, digest, resumable
from surgery.tint.auxiliary import Auxiliary, fingerprint_of, load_named, name_of
from surgery.tint.descent import DivergedError
from surgery.tint.evaluation.reference import dynamic_evaluation
from surgery.tint.evaluation.report import Run, best, difference, pick_rates
from surgery.tint.inputs import as_ids
from surgery.tint.modules import check_mode
from surgery.tint.segments import check_length
from surgery.tint.simulator import BlockNumbers, TinT, check_steps

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
_WINDOW = 256  # unless the model has fewer positions
METHODS = ("frozen", "dynamic evaluation", "TinT paper", "TinT exact", "TinT published")
_USUAL = METHODS[:4]
_RESAMPLES = 2000


def run_text(
    model: Any,
    text: Any,
    *,
    shares: Sequence[float] = (0.5,),
    lr: float | Sequence[float] | None = None,
    steps: int = 1,
    layers: BlockNumbers = "all",
    methods: Sequence[str] = _USUAL,
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
        start_token: begin each window with the token that begins a text, which is then one of the window's; default what
            the tokenizer does by itself. Token ids are taken as they are.
        device, dtype: as `TinT.build` takes them.
        lr: a rate, or several to choose among for each method and share, on the first `dev_windows` windows, which are
            then left out of the figures; default a grid from 1e-5 to 3e-3.
        window: tokens of a window, by default 256 or what the model has positions for. `windows`: how many to measure on;
            default all there are.
        resume: a folder for the figures of the windows that are done; a later call with the same arguments goes on from
            there. The caller deletes it. Needs a model with a fingerprint: a folder, a hub id or a loaded `Model`.

    Raises:
        TintError: a text too short for its windows, or that needs a tokenizer; a descent that became NaN on a window that
            is measured. OptionError: an option out of range.
    """
    rates = pick_rates(lr, RATES)
    held = dev_windows if len(rates) > 1 else 0
    _check_options(shares, methods, window, batch_size, steps)
    if len(rates) > 1 and held < 1:
        raise OptionError("several learning rates, and no windows to choose by: give dev_windows or one lr")
    written = read_text(Path(text)) if isinstance(text, str | Path) else None
    if written is None and start_token:
        raise OptionError("start_token goes with a text: put the start token's id among the token ids")
    model = (load_named if written is None else load_whole)(model, device=device, dtype=dtype)
    auxiliary = Auxiliary.of(model, device=device, dtype=dtype)
    if window is None:
        window = min(_WINDOW, auxiliary.shape.positions)
        _check_options(shares, methods, window, batch_size, steps)
    check_length(torch.tensor([[window - 1]]), auxiliary.shape.positions)
    if written is None:
        start, ids = None, as_ids(text, auxiliary.shape.vocabulary, "text")[0]
    else:
        start, ids = _start_token(model.tokenizer, start_token), _tokens(model, written)
    each = window if start is None else window - 1
    count = len(ids) // each
    wanted = count - held if windows is None else windows
    if wanted < 1 or count < held + wanted:
        raise TintError(
            f"the text has {len(ids):,} tokens, which is {count} windows of {window}, but {held + max(wanted, 1)} are needed: give a longer text or lower --window"
        )
    rows = ids[: (held + wanted) * each].view(-1, each)
    if start is not None:
        rows = torch.cat((torch.full((len(rows), 1), start), rows), 1)
    rows = rows.to(auxiliary.device)
    asked = {
        "model": name_of(model),
        "text": "token ids" if written is None else str(text),
        "start_token": None if start is None else model.tokenizer.convert_ids_to_tokens(start),
        "shares": list(shares),
        "lr": list(rates),
        "steps": steps,
        "layers": layers if isinstance(layers, str) else list(layers),
        "methods": list(methods),
        "window": window,
        "windows": wanted,
        "dev_windows": held,
        "batch_size": batch_size,
        "dtype": str(auxiliary.dtype).removeprefix("torch."),
    }
    inputs = {**fingerprint_of(model, resume), "tokens": digest(rows.tolist())}
    points = []
    with resumable(resume, {**asked, **inputs}) as state:
        known = Memo(state and state / "figures.jsonl")
        work = _Work(auxiliary, rows, methods, steps, layers, batch_size, known)
        costs = [len(rows) - held if method == "frozen" else len(rates) * held + len(rows) - held for method in methods]
        total, done = len(shares) * sum(costs), 0
        for share in shares:
            boundary = round(share * window)
            for method in methods:

                def tell(more: int, line: str = f"{method} at {share:.0%}") -> None:
                    nonlocal done
                    done += more
                    progress(done, total, line)

                tell(0)
                rate = None
                if method != "frozen":
                    dev = range(held)
                    scores = {
                        r: float(work.losses(method, dev, boundary, r, tell, dev=True).sum()) for r in rates if held
                    }
                    rate = best(scores, lowest=True) if held else rates[0]
                losses = work.losses(method, range(held, len(rows)), boundary, rate, tell)
                points.append(
                    {"method": method, "share": share, "lr": rate, **_perplexity(losses, window - boundary, seed)}
                )
    progress(total, total, "done")
    _compare_with_frozen(points)
    content = {
        **provenance(call={"run_text": asked}, inputs=inputs, seed=seed),
        "kind": "text",
        "window": window,
        "windows": wanted,
        "dev_windows": held,
        "rates": rates,
        "dtype": asked["dtype"],
        "start_token": asked["start_token"],
        "points": points,
    }
    return Run(content)


def _compare_with_frozen(points: list[dict[str, Any]]) -> None:
    """Add to each method that learns what it gains on the frozen model, where that was run: nats a token, paired by window."""
    frozen = {point["share"]: point["losses"] for point in points if point["method"] == "frozen"}
    for point in points:
        if point["method"] != "frozen" and point["share"] in frozen:
            pairs = zip(frozen[point["share"]], point["losses"], strict=True)
            point |= difference([before - after for before, after in pairs])


class _Work:
    """The losses of windows after each method."""

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
            losses = _row_losses(self._logits(method, batch, boundary, lr), batch[:, boundary:])
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

    def _logits(self, method: str, batch: Tensor, boundary: int, lr: float | None) -> Tensor:
        """After the update on the tokens before `boundary`, of every token from there on."""
        mask = (torch.arange(batch.shape[1], device=batch.device) < boundary).expand(batch.shape)
        read = slice(boundary - 1, -1)
        if method == "dynamic evaluation":
            layers = self.plain.layers
            return dynamic_evaluation(self.auxiliary, batch, mask, lr or 0.0, steps=self.steps, layers=layers)[0][
                :, read
            ]
        simulation = self.simulations.get(method)
        blocks = None if simulation is None else simulation.update(batch, mask, lr or 0.0).blocks
        return F.linear(self.plain.hidden(batch, blocks)[:, read], self.auxiliary.head)


def _row_losses(logits: Float[Tensor, "batch tokens vocabulary"], targets: Int[Tensor, "batch tokens"]) -> Tensor:
    losses = F.cross_entropy(logits.float().mT, targets, reduction="none").sum(1)
    return losses.nan_to_num(nan=math.inf).cpu()


def _perplexity(losses: NDArray, tokens: int, seed: int) -> dict[str, Any]:
    """The perplexity over all windows, and a bootstrap interval over windows."""
    draws = np.random.default_rng(seed).integers(0, len(losses), (_RESAMPLES, len(losses)))
    low, high = np.exp(np.quantile(losses[draws].mean(1) / tokens, (0.025, 0.975)))
    value = float(np.exp(losses.mean() / tokens))
    return {"value": value, "low": float(low), "high": float(high), "losses": (losses / tokens).tolist()}


def _check_options(
    shares: Sequence[float], methods: Sequence[str], window: int | None, batch_size: int, steps: int
) -> None:
    """Refuse what can be refused before the model is loaded; the default window is the model's to say."""
    if window is not None and window < 4:
        raise OptionError(f"a window of {window} tokens is too short: 4 at least")
    if batch_size < 1:
        raise OptionError(f"batch_size {batch_size} must be at least 1")
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


def load_whole(model: Any, device: str | torch.device | None, dtype: str | torch.dtype | None) -> Any:
    """A model with its tokenizer; raises TintError for one without, or that can't be simulated."""
    model = load_named(model, device=device, dtype=dtype, tokenized=True)
    if getattr(model, "tokenizer", None) is None:
        raise TintError("a text needs a tokenizer: give a folder, a hub id or a loaded Model, or give token ids")
    return model


def load_with_tokens(
    model: str,
    text: Path | None,
    tokens: int,
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> tuple[Any, Int[Tensor, "1 tokens"]]:
    """A loaded model, and one row of a text's first tokens, or of random ones, on the CPU."""
    written = None if text is None else read_text(text)
    loaded = load_whole(model, device, dtype)
    if written is None:
        size = min(len(loaded.tokenizer), loaded.module.get_input_embeddings().num_embeddings)  # either may be padded
        return loaded, torch.randint(size, (1, tokens), generator=torch.Generator().manual_seed(seed))
    ids = _tokens(loaded, written)
    if len(ids) < tokens:
        raise TintError(f"{text} has {len(ids)} tokens, fewer than the {tokens} asked for")
    return loaded, ids[None, :tokens]


def read_text(file: Path) -> str:
    """A file's text, without a byte order mark; raises TintError where there is none to read."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TintError(f"{file} can't be read as text ({error})") from error


def _tokens(model: Any, text: str) -> Tensor:
    ids = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


def _start_token(tokenizer: Any, wanted: bool | None) -> int | None:
    """The token that begins each window: the tokenizer's, where it puts one before a text by itself or one is asked for."""
    start = tokenizer.bos_token_id
    if wanted is None:
        first = tokenizer("a", verbose=False)["input_ids"][:1]
        return start if start is not None and first == [start] else None
    if wanted and start is None:
        raise OptionError("the tokenizer has no token that begins a text: leave --start-token out")
    return start if wanted else None
