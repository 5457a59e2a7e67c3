"""Skill-Mix: combinations of k skills and a topic, written in two turns and graded by a rubric of k + 3 points.

After Yu et al. 2023, Skill-Mix (arXiv:2310.17567), sections 3 and 4. The words of the prompts are ours.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.errors import EvaluationError, OptionError, TaskError
from surgery.evaluating.agreement import agreement_facts
from surgery.evaluating.calls import Answer, Call, Log, Message
from surgery.evaluating.evaluation import Evaluation
from surgery.evaluating.formal.sentences import sentences
from surgery.evaluating.measured import Facts, Item, Metric
from surgery.evaluating.models import open_language_model
from surgery.evaluating.novelty import novelty_facts
from surgery.evaluating.opening import Opened, evaluate_both
from surgery.evaluating.rubric import OTHERS, Points, best, majority, names_a_skill, read_points, sentence_limit
from surgery.evaluating.runner import LanguageModel, Runner
from surgery.progress import Progress, silent
from surgery.tasks.data_files import read_csv

METRICS = (
    Metric("Full Marks", "share of combinations with all k + 3 points, the best of their generations"),
    Metric("All Skills", "share with all k skills and at least two of the other three points"),
    Metric("Skill Fraction", "share of the k skills that are shown where the other three points are all there, else 0"),
)


@dataclass(frozen=True)
class Skill:
    """A skill of language with its definition and an example."""

    name: str
    definition: str
    example: str


@dataclass(frozen=True)
class Combination:
    """A topic and k skills."""

    topic: str
    skills: tuple[Skill, ...]

    @property
    def names(self) -> list[str]:
        """Names of the skills."""
        return [skill.name for skill in self.skills]


def read_skills(file: str | Path) -> list[Skill]:
    """Skills of a CSV file with columns skill, definition and example, as published; raises EvaluationError, naming the row."""
    path = Path(file).expanduser()
    try:
        rows = read_csv(path)
    except (OSError, TaskError, UnicodeError) as error:
        raise EvaluationError(f"`skills` {path} can't be read ({error}): give a CSV file of skills") from None
    found = []
    for number, row in rows:
        fields = [str(row.get(name) or "").strip() for name in ("skill", "definition", "example")]
        if not all(fields):
            raise EvaluationError(
                f"`skills` {path}, line {number}: a skill needs its columns skill, definition and example filled in"
            )
        found.append(Skill(*fields))
    if len({skill.name for skill in found}) < len(found) or not found:
        raise EvaluationError(
            f"`skills` {path} holds {'no skills' if not found else 'a skill twice'}: give each one line"
        )
    return found


def read_topics(file: str | Path) -> list[str]:
    """Topics of a text file, one a line; raises EvaluationError."""
    path = Path(file).expanduser()
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise EvaluationError(f"`topics` {path} can't be read ({error}): give a text file, a topic a line") from None
    if not found:
        raise EvaluationError(f"`topics` {path} holds no topics: give one a line")
    return found


def draw_combinations(
    skills: Sequence[Skill], topics: Sequence[str], k: int, count: int, seed: int
) -> list[Combination]:
    """Different combinations of k skills and a topic, in an order that the seed decides; skills of one in the file's order.

    Raises:
        OptionError: fewer skills than k, or fewer combinations than asked for.
    """
    if not 1 <= k <= len(skills):
        raise OptionError(f"`k` {k} must be 1 to {len(skills)}, the number of skills")
    draw, found = random.Random(f"skillmix {k} {seed}"), dict[tuple[Any, ...], Combination]()
    for _ in range(200 * count):
        if len(found) == count:
            break
        chosen = tuple(sorted(draw.sample(range(len(skills)), k)))
        topic = draw.choice(topics)
        found.setdefault((topic, chosen), Combination(topic, tuple(skills[place] for place in chosen)))
    if len(found) < count:
        raise OptionError(
            f"`combinations` {count} are more than {len(skills)} skills and {len(topics)} topics give: ask for fewer"
        )
    return list(found.values())


def first_turn(combination: Combination) -> str:
    """What a model is asked first."""
    k = len(combination.skills)
    limit = sentence_limit(k)
    told = "\n".join(f"- {skill.name}: {skill.definition} Example: {skill.example}" for skill in combination.skills)
    return (
        f"Write one short piece of text in the context of {combination.topic} that illustrates all of these skills:\n{told}\n\n"
        f"Use at most {limit} sentence{'s' * (limit > 1)}, and don't name the skills in it. "
        "Begin with the line `Answer:` and the text, then `Explanation:` and how it shows each skill."
    )


def second_turn(combination: Combination) -> str:
    """What it is asked then."""
    limit = sentence_limit(len(combination.skills))
    return (
        f"Now look at your text again and improve it: does it show each skill, is it about {combination.topic}, does it make sense, and has it "
        f"at most {limit} sentence{'s' * (limit > 1)}? Give it again in the same form, `Answer:` first and then `Explanation:`."
    )


def read_text(reply: str) -> str:
    """The text itself in a model's reply: what follows `Answer:`, up to `Explanation:`."""
    _, marked, after = reply.rpartition("Answer:")
    return (after if marked else reply).partition("Explanation:")[0].strip().strip('*"` \n').strip()


def grading_prompt(combination: Combination, text: str) -> str:
    """What a grader is asked."""
    k = len(combination.skills)
    limit = sentence_limit(k)
    told = "\n".join(f"- {skill.name}: {skill.definition} Example: {skill.example}" for skill in combination.skills)
    criteria = [f"Illustrates {name}" for name in combination.names]
    criteria += [f"Is about {combination.topic}", "Makes sense", f"Has at most {limit} sentence{'s' * (limit > 1)}"]
    rows = "\n".join(f"| {row} | |" for row in criteria)
    return (
        f"Grade a text. It was to be about {combination.topic} and to illustrate these skills:\n{told}\n\nThe text:\n<text>\n{text}\n</text>\n\n"
        f"For each criterion give 1 if the text meets it, else 0. Copy this table and fill in its last column, with 0 or 1 and nothing else; then explain.\n\n"
        f"| Criterion | Points |\n|---|---|\n{rows}"
    )


# Long: options and what they mean.
def evaluate_skillmix(
    model: str | Path | LanguageModel,
    *,
    skills: str | Path | Sequence[Skill],
    topics: str | Path | Sequence[str],
    graders: Sequence[str | Path | LanguageModel],
    against: str | Path | LanguageModel | None = None,
    k: int = 2,
    combinations: int = 100,
    generations: int = 3,
    gradings: int = 3,
    no_names: bool = False,
    max_tokens: int = 400,
    temperature: float = 0.7,
    seed: int = 0,
    floor: Sequence[float] = (),
    log: str | Path | Log | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
    prices: tuple[float, float] | None = None,
    **opening: Any,
) -> Evaluation:
    """Evaluate a model on combinations of k skills, and beside it another on the same combinations and seeds.

    Args:
        skills, topics: the published files or your own, or what is in them.
        graders: one or several; of several the majority is over all gradings, and their agreement is shown.
        generations, gradings: of each combination, and of each generation by each grader.
        no_names: a text that names a skill loses the points of that skill.
        floor, log, dry_run, opening: as `evaluate_formal` takes them.
        prices: dollars for a million tokens of questions, and of answers, to servers.

    Raises:
        OptionError, EvaluationError: options or files that don't fit, before any call.
    """
    known = read_skills(skills) if isinstance(skills, str | Path) else list(skills)
    about = read_topics(topics) if isinstance(topics, str | Path) else list(topics)
    if not graders:
        raise OptionError("`grader` is missing: give openai:NAME@URL, or a folder or hub id of a model that can grade")
    for name, value in (("generations", generations), ("gradings", gradings), ("combinations", combinations)):
        if value < 1:
            raise OptionError(f"`{name}` {value} must be 1 or more")
    chosen = draw_combinations(known, about, k, combinations, seed)
    opened = [open_language_model(grader, **opening) for grader in graders]
    settings: dict[str, Any] = {
        "k": k,
        "combinations": combinations,
        "generations": generations,
        "gradings": gradings,
        "no_names": no_names,
    }
    settings |= {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "graders": [g.name for g in opened],
    }
    writing: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    facts: list[Facts] = []

    def ask(student: LanguageModel, runner: Runner) -> list[Item]:
        texts = _write(student, runner, chosen, generations, seed, writing)
        items, verdicts, clusters = _grade(opened, runner, chosen, texts, gradings, no_names)
        if not facts:
            facts.extend(agreement_facts(verdicts, clusters))
        return items

    how = Opened(opening, log, dry_run, progress, prices)
    found = evaluate_both(
        "skillmix", METRICS, ask, model, against, settings=settings, floor=floor, how=how, graders=opened
    )
    more = () if dry_run else (*facts, novelty_facts(found.score("Full Marks"), k))
    return _with_facts(found, more)


def _with_facts(evaluation: Evaluation, facts: Sequence[Facts]) -> Evaluation:
    from dataclasses import replace

    return replace(evaluation, facts=tuple(facts))


def _write(
    student: LanguageModel,
    runner: Runner,
    chosen: Sequence[Combination],
    generations: int,
    seed: int,
    writing: dict[str, Any],
) -> list[tuple[Answer, Answer]]:
    """Both turns of each generation of each combination, in this order: generations of a combination together."""
    tasks = [(number, turn) for number in range(len(chosen)) for turn in range(generations)]
    seeds = [seed * 1_000_003 + number * generations + turn for number, turn in tasks]
    asked = [Message("user", first_turn(chosen[number])) for number, _ in tasks]
    calls = [Call((message,), seed=each, **writing) for message, each in zip(asked, seeds, strict=True)]
    first = runner.ask(student, calls, "writing")
    follow = [
        Call(
            (message, Message("assistant", answer.text), Message("user", second_turn(chosen[number]))),
            seed=each,
            **writing,
        )
        for message, answer, (number, _), each in zip(asked, first, tasks, seeds, strict=True)
        if answer.text is not None
    ]
    second = iter(runner.ask(student, follow, "improving"))
    return [(answer, next(second) if answer.text is not None else answer) for answer in first]


def _grade(
    graders: Sequence[LanguageModel], runner: Runner, chosen: Sequence[Combination], texts: Sequence[tuple[Answer, Answer]],
    gradings: int, no_names: bool,
) -> tuple[list[Item], dict[str, list[float | None]], list[str]]:  # fmt: skip
    """Items, each grader's points one after another, and the combination of each point."""
    generations = len(texts) // len(chosen)
    k = len(chosen[0].skills)
    read: dict[tuple[str, int, int], Points | None] = {}
    for grader in graders:
        wanted, calls = [], []
        for place, (_, answer) in enumerate(texts):
            if answer.text is not None:
                asked = grading_prompt(chosen[place // generations], read_text(answer.text))
                for turn in range(gradings):
                    wanted.append((grader.name, place, turn))
                    calls.append(Call.of(asked, max_tokens=600, temperature=0.7 if gradings > 1 else 0.0, seed=turn))
        for key, reply in zip(wanted, runner.ask(grader, calls, "grading"), strict=True):
            read[key] = None if reply.text is None else read_points(reply.text, k + OTHERS)
    items, verdicts = [], {grader.name: list[float | None]() for grader in graders}
    clusters: list[str] = []
    for number, combination in enumerate(chosen):
        places = range(number * generations, (number + 1) * generations)
        points = []
        for place in places:
            answer = texts[place][1]
            by_grader = {g.name: [read.get((g.name, place, turn)) for turn in range(gradings)] for g in graders}
            points.append(
                _settled(majority([p for each in by_grader.values() for p in each]), answer, combination, no_names)
            )
            for name, each in by_grader.items():
                own = majority(each)
                verdicts[name] += [None] * (k + OTHERS) if own is None else list(own)
            clusters += [str(number)] * (k + OTHERS)
        items.append(_item(number, combination, [texts[place] for place in places], points))
    return items, verdicts, clusters


def _settled(points: Points | None, answer: Answer, combination: Combination, no_names: bool) -> Points | None:
    """Points with the sentence limit by count, and those of named skills taken away where that is the rule."""
    if points is None or answer.text is None:
        return None
    text, k = read_text(answer.text), len(combination.skills)
    own = list(points[:k])
    if no_names:
        own = [
            0.0 if named else point for point, named in zip(own, names_a_skill(text, combination.names), strict=True)
        ]
    return (*own, *points[k:-1], float(len(sentences(text)) <= sentence_limit(k)))


def _item(
    number: int, combination: Combination, texts: Sequence[tuple[Answer, Answer]], points: Sequence[Points | None]
) -> Item:
    k = len(combination.skills)
    criteria = [*combination.names, "on topic", "makes sense", "within the limit"]
    transcript, shown = [("asked", first_turn(combination))], dict[str, float | None]()
    for turn, ((first, second), own) in enumerate(zip(texts, points, strict=True), 1):
        transcript += [(f"answer {turn}", first.text or first.error), (f"improved {turn}", second.text or second.error)]
        shown |= {f"{turn}: {name}": None if own is None else own[place] for place, name in enumerate(criteria)}
    error = next((answer.error for pair in texts for answer in pair if answer.error), "the gradings can't be read")
    name = f"{number}: {combination.topic}, {', '.join(combination.names)}"
    labels = {
        "skill": ", ".join(name.replace(",", ";") for name in combination.names),
        "topic": combination.topic,
        "k": str(k),
    }
    return Item(name, str(number), best(points, k), labels, transcript, shown, "" if any(points) else error)
