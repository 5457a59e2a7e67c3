"""Expectation-maximisation that goes on where it was stopped."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pcfg.devices import Device
from pcfg.errors import OptionError
from pcfg.grammars.grammar import GRAMMAR_FILE, Grammar
from pcfg.learning.expectation_maximization import Fitted, expected_counts, fit
from pcfg.resuming import resumable_output
from pcfg.sentences import fingerprint
from surgery.files import new_folder, replace_json
from surgery.progress import Progress, silent
from surgery.resuming import read_state

_STATE = "state.json"


def fit_file(
    grammar: Grammar,
    sentences: Sequence[Sequence[str]],
    rounds: int,
    output: str | Path,
    *,
    smoothing: float = 0.0,
    workers: int = 1,
    device: Device | None = None,
    on_round: Callable[[int, float], None] = lambda done, log_likelihood: None,
    progress: Progress = silent,
) -> Fitted:
    """Fit a grammar into a file; each round is kept in `<output>.partial`, from where the same call goes on after a kill.

    Args:
        on_round: called with how many rounds are done and the log-likelihood of the text then.
    """
    output = Path(output)
    if rounds < 1:
        raise OptionError(f"{rounds} rounds were asked for: ask for 1 or more")
    call = {"what": "fit", "grammar": grammar.fingerprint, "text": fingerprint(sentences)}
    with resumable_output(output, {**call, "rounds": rounds, "smoothing": smoothing}) as partial:
        likelihoods: list[float] = []
        left_out: tuple[int, ...] | None = None
        if states := sorted(partial.glob("[0-9]*")):
            grammar = Grammar.load(states[-1] / GRAMMAR_FILE)
            likelihoods = read_state(states[-1] / _STATE, list[float])
        for done, value in enumerate(likelihoods):
            on_round(done, value)

        def keep(number: int, better: Grammar, value: float) -> None:
            likelihoods.append(value)
            on_round(len(likelihoods) - 1, value)
            with new_folder(partial / f"{len(likelihoods):06d}") as staged:
                better.save(staged / GRAMMAR_FILE)
                replace_json(staged / _STATE, likelihoods)
            shutil.rmtree(partial / f"{len(likelihoods) - 1:06d}", ignore_errors=True)

        if len(likelihoods) < rounds:
            options = {"workers": workers, "device": device, "on_round": keep, "progress": progress}
            fitted = fit(grammar, sentences, rounds - len(likelihoods), smoothing=smoothing, **options)  # type: ignore[arg-type]
            grammar, last, left_out = fitted.grammar, float(fitted.log_likelihoods[-1]), fitted.left_out
        else:  # stopped after the last round
            counts = expected_counts(grammar, sentences, workers=workers, device=device)
            last, left_out = counts.log_likelihood, counts.left_out
        on_round(rounds, last)
        grammar.save(output)
    words = sum(map(len, sentences)) - sum(len(sentences[i]) for i in left_out)
    return Fitted(grammar, np.array([*likelihoods, last]), left_out, words)
