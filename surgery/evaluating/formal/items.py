"""Items of Formal Skill-Mix: topics and k skills by seed, and for the reading of likelihoods texts in balanced groups."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

from surgery.errors import EvaluationError, OptionError
from surgery.evaluating.formal.skills import compatible, example, instruction, parse, skill_ids
from surgery.evaluating.formal.writer import TOPICS, write

OPTIONS = 4  # instructions that a text is held to, of which one is its own: chance is one in four
_TRIES, _WAITING = 50, 500


@dataclass(frozen=True)
class Group:
    """Four sets of skills, and for each a text that shows it and none of the other three, all about one topic.

    What decides by the instruction alone, or by the text alone, is right in one of its four items exactly.
    """

    topic: str
    skills: tuple[tuple[str, ...], ...]
    texts: tuple[str, ...]


def prompt(topic: str, skills: Sequence[str] = ()) -> str:
    """The instruction to write a text, with an example of each skill about something else (as in Skill-Mix)."""
    if not skills:
        return f"Write a short text about {topic}."
    asked = [instruction(name) for name in skills]
    listed = " and ".join([", ".join(asked[:-1]), asked[-1]] if len(asked) > 1 else asked)
    examples = [
        f"A text about tea that {told}:\n{example(name)}"
        for name, told in zip(skills, asked, strict=True)
        if example(name)
    ]
    return "\n\n".join([*examples, f"Write a short text about {topic} that {listed}."])


def draw_skills(k: int, count: int, seed: int, names: Sequence[str] | None = None) -> list[tuple[str, ...]]:
    """`count` sets of k skills that go together; none comes twice before all have come once.

    Args:
        names: ids to draw from; by default all.

    Raises:
        OptionError: k isn't 1 to 4. EvaluationError: an unknown id, or none that go together.
    """
    if not 1 <= k <= 4:
        raise OptionError(f"`k` {k} must be 1 to 4: more formal skills hardly go into one short text")
    return list(islice(_passes(k, seed, names or skill_ids()), count))


def _passes(k: int, seed: int, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Sets of k skills without end, in passes over all of them in an order of its own each."""
    for name in names:
        parse(name)
    sets = [s for s in combinations(names, k) if all(compatible(one, other) for one, other in combinations(s, 2))]
    if not sets:
        raise EvaluationError(f"no {k} of the skills {', '.join(names)} go together: name more")
    draw = random.Random(f"{k} {seed}")
    while True:
        yield from draw.sample(sets, len(sets))


def draw_groups(k: int, count: int, seed: int, names: Sequence[str] | None = None) -> list[Group]:
    """`count` groups for the reading of likelihoods; skills that tell what to copy are left out unless named.

    Raises:
        OptionError, EvaluationError: as `draw_skills`; too few skills for four different sets.
    """
    names = names or skill_ids(quoting=False)
    draw_skills(k, 1, seed, names)  # refuses what can't be drawn from
    queue, draw = _passes(k, seed, names), random.Random(f"groups {k} {seed}")
    waiting: list[tuple[str, ...]] = []
    groups: list[Group] = []
    for _ in range(_TRIES * (count + 1)):
        if len(groups) == count:
            return groups
        chosen = _choose(queue, waiting)
        if len(chosen) < OPTIONS:
            break
        draw.shuffle(chosen)
        topic = TOPICS[len(groups) % len(TOPICS)]
        try:
            texts = [write(topic, own, without=_others(own, chosen), seed=draw.randrange(1 << 30)) for own in chosen]
        except EvaluationError:
            waiting += chosen[1:]  # with others they may do
            continue
        groups.append(Group(topic, tuple(chosen), tuple(texts)))
    raise EvaluationError(
        f"the skills {', '.join(names)} give no {count} groups of {OPTIONS} sets of {k}: name more, or fewer items"
    )


def _choose(queue: Iterator[tuple[str, ...]], waiting: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Sets that go into one group: first those that wait, then new ones; fewer than `OPTIONS` where there are none."""
    chosen: list[tuple[str, ...]] = []
    while len(chosen) < OPTIONS and len(waiting) < _WAITING:
        place = next((n for n, skills in enumerate(waiting) if _differs(skills, chosen)), None)
        if place is None:
            waiting.append(next(queue))
        else:
            chosen.append(waiting.pop(place))
    return chosen


def _differs(skills: Sequence[str], chosen: Sequence[Sequence[str]]) -> bool:
    """Whether a set differs from chosen ones in every kind of skill, or, of three skills and more, in one."""
    kinds = {name.partition(":")[0] for name in skills}
    others = [{name.partition(":")[0] for name in other} for other in chosen]
    return all(kinds != other if len(kinds) > 2 else not kinds & other for other in others)


def _others(own: tuple[str, ...], chosen: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [other for other in chosen if other != own]
