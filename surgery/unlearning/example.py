"""The embedded example: scikit-learn's digits; one class is forgotten, verified, and remembered again bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from surgery.files import check_output, new_folder
from surgery.progress import Progress, silent
from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.evaluation.report import Report
from surgery.unlearning.evaluation.verification import verify
from surgery.unlearning.features.rows import Rows
from surgery.unlearning.forgetting import unlearn

FOLDER = "surgery-unlearning-example"
SIZES: dict[str, Any] = {"codebooks": 64, "keys": 256, "key_dim": 14}
_FORGET = 3


def digits(seed: int = 0) -> tuple[tuple[NDArray, NDArray], tuple[NDArray, NDArray]]:
    """1,797 images of handwritten digits, 8 x 8 pixels of 0 to 16, four fifths of each class to train on: (X, y) twice."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(
        pixels, labels, test_size=0.2, stratify=labels, random_state=seed
    )
    return (train, train_labels), (test, test_labels)


def run_example(
    output: Path | None = None,
    *,
    overwrite: bool = False,
    device: str | torch.device | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
    progress: Progress = silent,
) -> tuple[Report, Path]:
    """Fit, forget, verify, undo; returns the report and the folder with all of it. An earlier run's folder of the default name is replaced."""
    folder = output or Path(FOLDER)
    overwrite = overwrite or output is None
    check_output(folder, overwrite=overwrite, replaces="bn")
    train, test = digits(seed)
    say(f"1. A bottleneck on {len(train[1]):,} handwritten digits: 64 codebooks of 256 keys, values by SGD")
    bottleneck = Bottleneck.fit_features(*train, **SIZES, seed=seed, device=device, progress=progress)
    right = (bottleneck.predict(test[0], device=device) == test[1]).mean()
    say(f"   {100 * right:.1f}% of {len(test[1]):,} test images are told right")
    eraser = unlearn(bottleneck, _FORGET, seed=seed, device=device, progress=progress)
    edit = eraser.edit
    say(
        f"2. Forgetting {_FORGET}: {edit['masked']:,} of {edit['of_pairs']:,} keys masked, by {edit['rows']} training rows alone, without a gradient"
    )
    forgot = eraser.apply(bottleneck)
    say("3. What is gone, what stayed, what an attacker can tell")
    report = verify(bottleneck, eraser, Rows.of(*test), seed=seed, device=device, progress=progress)
    say("4. And back")
    again = eraser.undo(forgot)
    say(f"   undone: fingerprint {again.fingerprint[:16]}, as before")
    with new_folder(folder, overwrite=overwrite, replaces="bn") as staged:
        bottleneck.save(staged / "bn")
        forgot.save(staged / "forgot")
        eraser.save(staged / "eraser")
        report.save(staged / "report")
    return report, folder
