"""The bottleneck on a card: a fit of 50,000 rows by stages, keys selected, edits; and which results are the same bits."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from surgery.unlearning import Bottleneck, Rows, unlearn
from surgery.unlearning.keys import fit_keys
from surgery.unlearning.values import Sgd, learn_values
from tests.benchmarks.card.measure import Line, holds, peak_bytes, shown, timed, wait, within

DEVICE = "cuda"
ROWS, WIDTH, CLASSES, BATCH = 50_000, 512, 100, 8192
SIZES: dict[str, int] = {"codebooks": 256, "keys": 256}


def made(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows around a middle a class, near enough to overlap, and their classes."""
    random = np.random.default_rng(seed)
    middles = np.random.default_rng(7).standard_normal((CLASSES, WIDTH), np.float32)
    y = random.integers(0, CLASSES, rows)
    return middles[y] * 0.5 + random.standard_normal((rows, WIDTH), np.float32), y


def lasting(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one run until the card is done, and what it gave."""
    wait()
    began = time.perf_counter()
    found = run()
    wait()
    return time.perf_counter() - began, found


def fit_lines(rows: Rows, device: torch.device) -> Iterator[Line | Bottleneck]:
    """The fit, and its stages by themselves, which give the bits of the fit; last the bottleneck."""
    fits: list[tuple[float, Bottleneck]] = []
    peak = peak_bytes(lambda: fits.append(lasting(lambda: Bottleneck.fit_rows(rows, **SIZES, device=DEVICE))))
    seconds, fitted = fits[0]
    selector, training = fitted.selector, fitted.training
    placing, again = lasting(lambda: fit_keys(rows.features, selector.projections, SIZES["keys"], device=device))
    selecting, ids = lasting(lambda: again.select(rows.features, device=device))
    given = (training.ids, training.targets, selector.states, CLASSES, Sgd(), 0, device)
    learning, table = lasting(lambda: learn_values(*given))
    stages = f"keys {shown(placing)}, selecting {shown(selecting)}, values {shown(learning)}; {peak / 2**30:.1f} GiB"
    yield within(f"bottleneck fit, {ROWS:,} x {WIDTH}, C 256, K 256", seconds, 6.0, shown, stages)
    yield holds("bottleneck: keys are the same bits twice", again.keys.tobytes() == selector.keys.tobytes())
    yield holds("bottleneck: ids are the same twice", ids.tobytes() == training.ids.tobytes())
    yield holds("bottleneck: values are the same bits twice", table.tobytes() == fitted.entries.tobytes())
    yield fitted


def select_lines(fitted: Bottleneck, device: torch.device) -> Iterator[Line]:
    """Keys of a batch: what it takes beyond copying rows there and ids back; and rows on their own."""
    features = made(BATCH, 1)[0]
    ids = fitted.selector.select(features, device=device)

    def copy() -> None:
        torch.from_numpy(features).to(device)
        torch.from_numpy(ids.view(np.int16)).to(device).cpu()

    copying = timed(copy)
    selecting = timed(lambda: fitted.selector.select(features, device=device))
    asking = timed(lambda: fitted.select(features, device=DEVICE))
    note = f"{shown(selecting)} less {shown(copying)} of copying; Bottleneck.select, which checks rows, {shown(asking)}"
    yield within(f"bottleneck: keys of {BATCH:,} rows", max(selecting - copying, 1e-9), 0.01, shown, note)
    some = np.random.default_rng(0).permutation(BATCH)[:700]
    alone = fitted.selector.select(features[some], device=device)
    yield holds("bottleneck: a row's ids whatever the rows beside it", bool((alone == ids[some]).all()))
    there, here = ids[:512], fitted.selector.select(features[:512])
    yield within("bottleneck: share of ids that differ from a CPU's", float((there != here).mean()), 1e-3)


def edit_lines(rows: Rows, fitted: Bottleneck, device: torch.device) -> Iterator[Line]:
    """Refitting against a fit without the rows; deciding on masks."""
    gone = np.flatnonzero(fitted.training.targets == 3)
    stay = np.delete(np.arange(ROWS), gone)
    seconds, table = lasting(lambda: fitted.refit_entries(stay, device=device))
    yield within("bottleneck: refitting without a class", seconds, 3.0, shown)
    ids = fitted.selector.select(rows.features[stay], device=device)
    targets, states = fitted.training.targets[stay], fitted.selector.states
    fresh = learn_values(ids, targets, states, CLASSES, Sgd(), 0, device)
    fresh[:, :, 3] = np.minimum(fresh[:, :, 3], -1e-6)
    yield holds("bottleneck: refitting is fitting without the rows", fresh.tobytes() == table.tobytes())
    fitted.fingerprint  # noqa: B018 (found once for all edits)
    for how in ({"method": "activations"}, {"method": "examples"}):
        wait()
        edit = unlearn(fitted, 3, **how, device=DEVICE)
        again = unlearn(fitted, 3, **how, device=DEVICE)
        took = again.report["seconds"]
        yield within(f"bottleneck: deciding by {how['via']}", took, 1.0, shown, f"{len(edit.pairs):,} pairs")
        yield holds(f"bottleneck: the same pairs twice by {how['via']}", edit.pairs.tolist() == again.pairs.tolist())
    after = edit.apply(fitted)
    seconds, _ = lasting(lambda: unlearn(after, 4, device=DEVICE))
    yield within("bottleneck: deciding after an earlier mask", seconds, 4.0, shown)


def near_lines(device: torch.device) -> Iterator[Line]:
    """Small fits against a CPU's: keys as good, values to rounding, accuracy; moving averages."""
    (x, y), (test, truth) = made(5000), made(2000, 1)
    small = {"codebooks": 16, "keys": 64, "seed": 1}
    for method in ("kmeans", "ema"):
        seconds, there = lasting(
            lambda method=method: Bottleneck.fit_features(x, y, **small, key_init=method, device=DEVICE)
        )
        here_seconds, here = lasting(
            lambda method=method: Bottleneck.fit_features(x, y, **small, key_init=method, device="cpu")
        )
        right = [float((model.predict(test, device="cpu") == truth).mean()) for model in (there, here)]
        note = f"{right[0]:.3f} and {right[1]:.3f} right; fits {shown(seconds)} and {shown(here_seconds)}"
        yield within(f"bottleneck, {method}: accuracy off a CPU's", abs(right[0] - right[1]), 0.02, note=note)
    states = np.zeros((16, 64), np.uint8)
    given = (here.training.ids, here.training.targets, states, CLASSES, Sgd(), 0)
    values = [learn_values(*given, torch.device(place)) for place in (DEVICE, "cpu")]
    yield within("bottleneck: values off a CPU's", float(np.abs(values[0] - values[1]).max()), 1e-3)


def lines() -> Iterator[Line]:
    """A small fit first: the first call of anything on a card takes a second."""
    device = torch.device(DEVICE)
    yield from near_lines(device)
    rows, fitted = Rows.of(*made(ROWS)), None
    for found in fit_lines(rows, device):
        if isinstance(found, Bottleneck):
            fitted = found
        else:
            yield found
    yield from select_lines(fitted, device)
    yield from edit_lines(rows, fitted, device)
