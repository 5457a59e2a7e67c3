"""What every evaluation does: open models one after the other, ask each the same items, hold one against the other."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from surgery.errors import EvaluationError, OptionError
from surgery.evaluating.calls import Log
from surgery.evaluating.damaging import damage
from surgery.evaluating.evaluation import Evaluation
from surgery.evaluating.measured import Item, Metric
from surgery.evaluating.models import open_language_model
from surgery.evaluating.runner import LanguageModel, Runner
from surgery.evaluating.server import PREFIX, ServerModel
from surgery.jsonfile import JsonError, load_json
from surgery.locks import hold
from surgery.progress import Progress, silent
from surgery.provenance import provenance

Ask = Callable[[LanguageModel, Runner], list[Item]]


@dataclass(frozen=True)
class Opened:
    """How models are opened and calls are made.

    Attributes:
        options: as `open_language_model` takes them.
        log: a file, an open log, or None for one in memory.
        prices: dollars for a million tokens of questions and of answers, of any server.
    """

    options: Mapping[str, Any]
    log: str | Path | Log | None = None
    dry: bool = False
    progress: Progress = silent
    prices: tuple[float, float] | None = None

    @contextmanager
    def runner(self) -> Iterator[Runner]:
        """Yield a runner whose log is held against other runs."""
        with ExitStack() as stack:
            if isinstance(self.log, Log):
                log = self.log
            else:
                file = None if self.log is None else Path(self.log).expanduser()
                if file is not None and file.is_dir():
                    raise OptionError(f"`log` {file} is a folder: name a file, such as {file / 'calls.jsonl'}")
                if file is not None and not self.dry:
                    stack.enter_context(hold(file))
                log = Log(file)
                stack.callback(log.close)
            yield Runner(log, dry=self.dry, progress=self.progress)


def evaluate_both(
    kind: str,
    metrics: Sequence[Metric],
    ask: Ask,
    model: str | Path | LanguageModel,
    against: str | Path | LanguageModel | None,
    *,
    settings: Mapping[str, Any],
    how: Opened,
    floor: Sequence[float] = (),
    remarks: Sequence[str] = (),
    graders: Sequence[LanguageModel] = (),
) -> Evaluation:
    """Ask one model, or two and noise floors of the second, and put what they scored together.

    Args:
        ask: gives a model its items; called once a model.
        floor: 0 for the second model again without the log, more for noise of that size on its weights.
    """
    _check_floor(floor, against)
    with how.runner() as runner:
        if how.prices:
            runner.prices = {str(source): how.prices for source in (model, against) if str(source).startswith(PREFIX)}
            runner.prices |= {grader.name: how.prices for grader in graders if grader.name.startswith(PREFIX)}

        one = partial(_one, kind, metrics, ask, settings, how, remarks, graders)
        evaluated = one(model, runner)
        if against is None:
            return evaluated
        base = one(against, runner)
        floors = {}
        for size in floor:
            fresh = replace(runner, fresh=size == 0, usage={})
            with tempfile.TemporaryDirectory() as scratch:
                source = against if size == 0 else damage(against, size, Path(scratch))  # type: ignore[arg-type]
                name = "the same again" if size == 0 else f"noise of {size:g}"
                floors[name] = replace(one(source, fresh), model=f"{against}, {name}")
        usage = {name: use.content() for name, use in runner.usage.items()}
        remarks_now = tuple(dict.fromkeys([*evaluated.remarks, *base.remarks, *_apart(evaluated, base)]))
        return replace(evaluated.against(base, floors), usage=usage, remarks=remarks_now)


def _one(
    kind: str,
    metrics: Sequence[Metric],
    ask: Ask,
    settings: Mapping[str, Any],
    how: Opened,
    remarks: Sequence[str],
    graders: Sequence[LanguageModel],
    source: Any,
    runner: Runner,
) -> Evaluation:
    """Ask one model its items."""
    opened = open_language_model(source, **how.options)
    items = ask(opened, runner)
    notes = (*remarks, *opened.remarks, *_notes(opened, runner))
    usage = {name: use.content() for name, use in runner.usage.items()}
    inputs = {each.name: each.identity.get("weights", "") for each in (opened, *graders)}
    origin = provenance(call={f"eval {kind}": dict(settings)}, inputs=inputs, seed=settings.get("seed"))
    origin["tokenizers"] = {opened.name: opened.identity.get("tokenizer", "")}
    measured: dict[str, Any] = {"remarks": notes, "settings": dict(settings), "usage": usage, "origin": origin}
    return Evaluation(kind, opened.name, tuple(metrics), tuple(items), **measured, links=_links(source))


def _apart(evaluated: Evaluation, base: Evaluation) -> Iterator[str]:
    """What else than the weights differs between two models of this disk."""
    one, other = (each.origin.get("tokenizers", {}).get(each.model) for each in (evaluated, base))
    if one and other and one != other:
        yield f"{evaluated.model} and {base.model} have different tokenizers: log-likelihoods are of the same texts in other tokens, and margins aren't alike."


def _check_floor(floor: Sequence[float], against: Any) -> None:
    for size in floor:
        if size < 0:
            raise OptionError(f"`floor` {size:g} must be 0 (the same again) or the size of a noise, such as 0.05")
        if against is None:
            raise OptionError("`floor` is the noise of what `against` names: give that too")
        if size > 0 and (isinstance(against, LanguageModel) or str(against).startswith(PREFIX)):
            raise OptionError(f"`floor` {size:g} damages weights: `against` must be a folder or hub id")


def _notes(model: LanguageModel, runner: Runner) -> Iterator[str]:
    usage = runner.usage.get(model.name)
    if isinstance(model, ServerModel) and usage and len(usage.fingerprints) > 1:
        yield f"{model.name} changed while it was asked: its answers have {len(usage.fingerprints)} fingerprints."
    if runner.log.unanswered and isinstance(model, ServerModel):
        yield f"{len(runner.log.unanswered)} calls were under way when an earlier run was stopped; they were made again, or weren't needed."


def _links(source: Any) -> dict[str, str]:
    """Reports of this program in a model's folder: what made it, and where that is told."""
    folder = Path(str(source)).expanduser()
    try:
        report = load_json(folder / "report.json", dict[str, Any])
    except (OSError, JsonError):
        return {}
    calls = report.get("call")
    what = ", ".join(calls) if isinstance(calls, dict) else "report"
    page = next(
        (name for name in ("index.html", "README.md", "report.json") if (folder / name).exists()), "report.json"
    )
    return {what: str((folder / page).absolute())}


def check_model(source: Any) -> None:
    """Refuse a name that can't be a model's before anything else is done; raises EvaluationError."""
    if not str(source).strip():
        raise EvaluationError("the model is missing: give a folder, a hub id, or openai:NAME@URL")
