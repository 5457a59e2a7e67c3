"""The novelty certificate: what share of a model's successes no training text can hold.

After Yu et al. 2023 (Skill-Mix), section 6: of the texts on a topic with k skills, a corpus of L sentences holds about
p_s^k p_t L at most by chance, where p_s and p_t bound how often a sentence shows a skill, and a topic.
"""

from dataclasses import dataclass

from surgery.errors import OptionError
from surgery.evaluating.measured import Facts
from surgery.evaluating.statistics import Score

SKILL_RATE, TOPIC_RATE, SENTENCES = 0.0144, 0.0022, 5e10  # the paper's bounds


@dataclass(frozen=True)
class Certificate:
    """Share of Full Marks that can't have been seen.

    Attributes:
        seen: the largest share of combinations of which a corpus can hold a text, at most 1.
        unseen, low, high: the smallest share of the successes that no corpus of that size holds, and its 95% interval;
            None without successes.
        certified: whether, at the interval's lower end, more than a third of the successes are unseen.
    """

    k: int
    seen: float
    unseen: float | None
    low: float | None
    high: float | None
    certified: bool


def certify(
    full_marks: Score,
    k: int,
    *,
    skill_rate: float = SKILL_RATE,
    topic_rate: float = TOPIC_RATE,
    sentences: float = SENTENCES,
) -> Certificate:
    """The certificate of a share of Full Marks at k skills.

    Args:
        skill_rate, topic_rate: the most often that a sentence shows one of the skills, or of the topics.
        sentences: of the corpus.

    Raises:
        OptionError: a rate outside 0 to 1, or a corpus without sentences.
    """
    if not (0 < skill_rate <= 1 and 0 < topic_rate <= 1 and sentences >= 1):
        raise OptionError("`skill_rate` and `topic_rate` must lie between 0 and 1, and `sentences` be 1 or more")
    seen = min(1.0, skill_rate**k * topic_rate * sentences)

    def unseen(share: float | None) -> float | None:
        return None if not share else max(0.0, 1 - seen / share)

    low = unseen(full_marks.low) if full_marks.low else 0.0 if full_marks.value else None
    certified = low is not None and low > 1 / 3
    return Certificate(k, seen, unseen(full_marks.value), low, unseen(full_marks.high), certified)


def threshold(
    k: int, *, skill_rate: float = SKILL_RATE, topic_rate: float = TOPIC_RATE, sentences: float = SENTENCES
) -> float:
    """Full Marks above which more than a third of the successes are unseen: 1.5 p_s^k p_t L."""
    return 1.5 * skill_rate**k * topic_rate * sentences


def novelty_facts(full_marks: Score, k: int) -> Facts:
    """The certificate as a table."""
    found = certify(full_marks, k)
    caption = (
        f"Can it have been seen? A corpus of {SENTENCES:.0e} sentences holds texts of at most this share of combinations by chance "
        f"(p_s {SKILL_RATE}, p_t {TOPIC_RATE}); what exceeds it is new. Certified: more than a third of the successes, at the interval's lower end."
    )
    row = [k, found.seen, full_marks.value, found.unseen, found.low, found.high, found.certified]
    return Facts(caption, ["k", "can be seen", "Full Marks", "unseen successes", "low", "high", "certified"], [row])
