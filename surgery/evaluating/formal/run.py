"""Formal Skill-Mix: k skills at a time that a program checks, by generation and by likelihood, without a grader."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgery.errors import OptionError
from surgery.evaluating.calls import Log
from surgery.evaluating.evaluation import Evaluation
from surgery.evaluating.formal import generation, likelihood
from surgery.evaluating.formal.skills import parse
from surgery.evaluating.measured import Item, Metric
from surgery.evaluating.opening import Opened, evaluate_both
from surgery.evaluating.runner import LanguageModel, Runner
from surgery.evaluating.server import ServerModel
from surgery.progress import Progress, silent

READINGS = ("likelihood", "generation")


# Long: options and what they mean.
def evaluate_formal(
    model: str | Path | LanguageModel,
    *,
    against: str | Path | LanguageModel | None = None,
    k: Sequence[int] = (1, 2),
    items: int = 300,
    readings: Sequence[str] | None = None,
    skills: Sequence[str] | None = None,
    max_tokens: int = 96,
    temperature: float = 0.7,
    seed: int = 0,
    floor: Sequence[float] = (),
    log: str | Path | Log | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
    **opening: Any,
) -> Evaluation:
    """Evaluate a model on formal skills, and beside it another on the same items.

    After Yu et al. 2023 (Skill-Mix), with skills that a program checks instead of a grader.

    Args:
        model: a folder, a hub id, `openai:NAME@URL`, or an open model. `against`: another, such as the base.
        k: how many skills at a time, 1 to 4; several, each with `items` items.
        readings: `likelihood` (weights only), `generation`, or both; by default both, of a server the second.
        skills: ids to draw from, such as `question` or `sentences:3`; by default all.
        max_tokens, temperature: of texts that are written.
        floor: noise floors of `against`: 0 asks it again without the log, .05 damages its weights by that much.
        log: file with all calls and answers, from which those that are known are taken.
        dry_run: make no call; `usage` counts them.
        opening: as `open_language_model` takes it: device, dtype, batch_size, chat, parallel.

    Raises:
        OptionError, EvaluationError: options that don't fit, before any call.
    """
    if items < 4:
        raise OptionError(f"`items` {items} are too few: 4 make a group")
    for name in skills or ():
        parse(name)
    chosen = _readings(readings, [model, against])
    settings = {"k": list(k), "items": items, "readings": chosen, "skills": list(skills) if skills else None}
    settings |= {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}

    def ask(opened: LanguageModel, runner: Runner) -> list[Item]:
        found: list[Item] = []
        for each in k:
            if "likelihood" in chosen:
                found += likelihood.read_likelihoods(opened, each, items, seed, skills, runner)
            if "generation" in chosen:
                found += generation.read_generations(
                    opened, each, items, seed, skills, runner, max_tokens=max_tokens, temperature=temperature
                )
        return found

    metrics: tuple[Metric, ...] = ()
    if "likelihood" in chosen:
        metrics += likelihood.METRICS
    if "generation" in chosen:
        metrics += generation.METRICS
    how = Opened(opening, log, dry_run, progress)
    return evaluate_both("formal", metrics, ask, model, against, settings=settings, floor=floor, how=how)


def _readings(readings: Sequence[str] | None, models: Sequence[Any]) -> list[str]:
    served = any(str(model).startswith("openai:") or isinstance(model, ServerModel) for model in models)
    for name in readings or ():
        if name not in READINGS:
            raise OptionError(f"`readings` {name} isn't one of {', '.join(READINGS)}")
    if served and readings and "likelihood" in readings:
        raise OptionError("`readings` likelihood needs weights: a server gives no likelihood of a text")
    return list(readings or (READINGS[1:] if served else READINGS))
