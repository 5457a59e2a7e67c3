"""Skill-Mix: combinations, two turns, the rubric, majorities, metrics, agreement and the novelty certificate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import EvaluationError, OptionError
from surgery.evaluating.agreement import kappa
from surgery.evaluating.calls import Answer
from surgery.evaluating.novelty import certify, threshold
from surgery.evaluating.rubric import (
    all_skills,
    best,
    full_marks,
    majority,
    read_points,
    sentence_limit,
    skill_fraction,
)
from surgery.evaluating.skillmix import Skill, draw_combinations, evaluate_skillmix, read_skills, read_text, read_topics
from surgery.evaluating.statistics import Score

SKILLS = [
    Skill(name, f"what {name} is", f"an example of {name}")
    for name in ("metaphor", "red herring (fallacy)", "irony", "syllogism")
]
TOPICS = ["sewing", "bees", "rain"]


def grading(*points):
    rows = [f"| criterion {number} | {point} |" for number, point in enumerate(points)]
    return "\n".join(
        ["Here it is:", "| Criteria | Points |", "|---|---|", *rows, "| Total | 5 |", "Explanation: 1 | 0"]
    )


class Speaker:
    """A model that answers by a function of the last message and how many came before."""

    def __init__(self, says, name):
        self.says, self.name = says, name
        self.identity, self.context, self.remarks = {"weights": name}, None, ()
        self.asked = []

    def answer(self, calls, given, failed):
        for number, call in enumerate(calls):
            self.asked.append(call)
            text = self.says(call)
            given(number, Answer(error="no answer in time") if text is None else Answer(text=text))

    def count_tokens(self, text):
        return len(text.split())


def student(call):
    turn = len(call.messages)
    return (
        f'Answer: "Bees sew. Try {turn}!"\nExplanation: so it is.'
        if turn == 1
        else "Answer: Bees sew fast.\nExplanation: improved."
    )


def run(says=student, grades=lambda call: grading(1, 1, 1, 1, 1), **options):
    options = {"k": 2, "combinations": 4, "generations": 2, "gradings": 3, **options}
    graders = options.pop("graders", None) or [Speaker(grades, "grader")]
    return evaluate_skillmix(Speaker(says, "student"), skills=SKILLS, topics=TOPICS, graders=graders, **options)


# -- the rubric ---------------------------------------------------------------------------------------------------------


def test_points_are_read_off_a_table_and_nothing_else():
    assert read_points(grading(1, 0, 1, 1, 1), 5) == (1, 0, 1, 1, 1)
    assert read_points(grading("1.0", "**0**", "1/1", 1, 0), 5) == (1, 0, 1, 1, 0)
    for reply in (
        "",
        "all five points",
        grading(1, 1, 1, 1),
        grading(1, 1, 1, 1, 1, 1),
        grading(1, 1, 1, 1, "0.5"),
        grading(1, 2, 1, 1, 1),
        grading(1, 1, 1, 1, "2/1"),
        grading("7", 1, 1, 1, 1),
    ):
        assert read_points(reply, 5) is None, reply


def test_the_majority_is_by_point_and_leaves_out_what_cannot_be_read():
    assert majority([(1.0, 0.0), (1.0, 1.0), (0.0, 0.0)]) == (1, 0)
    assert majority([(1.0, 0.0), None, None]) == (1, 0)
    assert majority([(1.0, 0.0), (0.0, 0.0)]) == (0, 0)
    assert majority([None, None]) is None and majority([]) is None


@given(st.integers(1, 6), st.data())
def test_metrics_by_their_definitions(k, data):
    points = tuple(data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=k + 3, max_size=k + 3)))
    assert full_marks(points, k) == (sum(points) == k + 3)
    assert all_skills(points, k) == (sum(points[:k]) == k and sum(points[k:]) >= 2)
    assert skill_fraction(points, k) == (sum(points[:k]) / k if sum(points[k:]) == 3 else 0)


def test_the_best_generation_counts_by_metric():
    assert best([(1.0, 0.0, 1.0, 1.0, 1.0), None, (1.0, 1.0, 0.0, 1.0, 1.0)], 2) == {
        "Full Marks": 0,
        "All Skills": 1,
        "Skill Fraction": 0.5,
    }
    assert set(best([None, None], 2).values()) == {None}
    assert [sentence_limit(k) for k in (1, 2, 3, 5)] == [1, 1, 2, 4]


# -- the run ------------------------------------------------------------------------------------------------------------


def test_two_turns_are_asked_and_the_second_is_graded():
    graders = [Speaker(lambda call: grading(1, 1, 1, 1, 1), "grader")]
    speaker = Speaker(student, "student")
    found = evaluate_skillmix(
        speaker, skills=SKILLS, topics=TOPICS, graders=graders, k=2, combinations=4, generations=2, gradings=3
    )
    assert [len(call.messages) for call in speaker.asked] == [1] * 8 + [3] * 8
    assert len({call.seed for call in speaker.asked[:8]}) == 8
    assert "what metaphor is" in "".join(call.messages[0].content for call in speaker.asked)
    # The same text twice is graded once.
    assert len(graders[0].asked) == 12 and all(
        "Bees sew fast." in call.messages[0].content and "Try 1" not in call.messages[0].content
        for call in graders[0].asked
    )
    assert [found.score(metric.name).value for metric in found.metrics] == [1, 1, 1]
    assert found.score("Full Marks").clusters == found.score("Full Marks").items == 4
    assert (
        evaluate_skillmix(
            Speaker(student, "student"), skills=SKILLS, topics=TOPICS, graders=graders, k=2, combinations=4
        )
        .items[0]
        .name
        == found.items[0].name
    )


def test_the_sentence_limit_is_counted_whatever_the_grader_says():
    long = run(lambda call: "Answer: One. Two.\nExplanation: x")
    assert long.score("Full Marks").value == 0 and long.score("All Skills").value == 1
    strict = run(grades=lambda call: grading(1, 1, 1, 1, 0))
    assert strict.score("Full Marks").value == 1


def test_a_named_skill_is_lost_where_that_is_the_rule():
    naming = run(
        lambda call: "Answer: It is irony, a metaphor, a syllogism and a red herring.\nExplanation: x", no_names=True
    )
    assert naming.score("Skill Fraction").value == 0 and naming.score("All Skills").value == 0
    assert (
        run(lambda call: "Answer: It is irony, a metaphor, a syllogism and a red herring.\nExplanation: x")
        .score("Full Marks")
        .value
        == 1
    )


def test_what_is_missing_is_missing():
    silent = run(lambda call: None if len(call.messages) == 3 else student(call))
    assert silent.score("Full Marks").value is None and silent.score("Full Marks").missing == 4
    assert {item.note for item in silent.items} == {"no answer in time"}
    muddled = run(grades=lambda call: "Five of five!")
    assert muddled.score("Full Marks").missing == 4 and {item.note for item in muddled.items} == {
        "the gradings can't be read"
    }
    one_of_three = run(grades=lambda call: grading(1, 1, 1, 1, 1) if call.seed == 1 else "?")
    assert one_of_three.score("Full Marks").value == 1


def test_two_graders_and_their_agreement():
    other = Speaker(
        lambda call: (
            grading(1, 0, 1, 1, 1)
            if "Bees" in call.messages[0].content and "sewing" in call.messages[0].content
            else grading(1, 1, 1, 1, 0)
        ),
        "other",
    )
    found = run(graders=[Speaker(lambda call: grading(1, 1, 1, 1, 1), "one"), other])
    assert found.facts[0].columns[0] == "graders" and found.facts[0].rows[0][0] == "one and other"
    assert found.facts[0].rows[0][1] == 4 * 2 * 5


def test_texts_are_taken_out_of_replies():
    assert read_text('Answer: "A b."\nExplanation: c') == "A b."
    assert read_text("Just a text.") == "Just a text."
    assert read_text("**Answer:** A b.\n\n**Explanation:** c") == "A b."


# -- files --------------------------------------------------------------------------------------------------------------


def test_combinations_are_drawn_by_seed_and_differ():
    drawn = draw_combinations(SKILLS, TOPICS, 2, 18, 3)
    assert len({(each.topic, *each.names) for each in drawn}) == 18
    assert drawn == draw_combinations(SKILLS, TOPICS, 2, 18, 3) != draw_combinations(SKILLS, TOPICS, 2, 18, 4)
    with pytest.raises(OptionError, match="`combinations` 19 are more than 4 skills and 3 topics give"):
        draw_combinations(SKILLS, TOPICS, 2, 19, 3)
    with pytest.raises(OptionError, match="`k` 5 must be 1 to 4"):
        draw_combinations(SKILLS, TOPICS, 5, 1, 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [("skill,definition\nirony,so\n", "line 2: a skill needs its columns"), ("skill,definition,example\nirony,,x\n", "line 2: a skill needs"),
     ("skill,definition,example\n", "holds no skills"), ("skill,definition,example\na,b,c\na,d,e\n", "a skill twice"), ('skill\n"a\n', "quotes don't fit")],
)  # fmt: skip
def test_files_of_skills_that_are_none(tmp_path, content, said):
    (tmp_path / "s.csv").write_text(content)
    with pytest.raises(EvaluationError, match=said):
        read_skills(tmp_path / "s.csv")


def test_files_of_skills_and_topics(tmp_path):
    (tmp_path / "s.csv").write_text('category,skill,definition,example\nx,irony,"so, so","it ""is"""\n')
    (tmp_path / "t.txt").write_text("rain\n\n bees \n")
    (tmp_path / "none.txt").write_text("\n")
    assert read_skills(tmp_path / "s.csv") == [Skill("irony", "so, so", 'it "is"')]
    assert read_topics(tmp_path / "t.txt") == ["rain", "bees"]
    for name, said in (("none.txt", "holds no topics"), ("gone.txt", "can't be read")):
        with pytest.raises(EvaluationError, match=said):
            read_topics(tmp_path / name)


# -- agreement and novelty ----------------------------------------------------------------------------------------------


def test_kappa():
    both = [1, 1, 0, 0]
    assert kappa(both, both) == 1
    assert kappa([1, 1, 0, 0], [1, 0, 1, 0]) == 0
    assert kappa([1, 1, 0, 0], [0, 0, 1, 1]) == -1
    assert kappa([1, 1], [1, 1]) is None and kappa([None, 1], [1, None]) is None
    # 20 and 15 of 50 both ways, 5 and 10 apart: the textbook's .4
    one, other = [1] * 25 + [0] * 25, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert kappa(one, other) == pytest.approx(0.4)


def test_the_novelty_certificate_is_the_papers():
    assert threshold(5) == pytest.approx(0.102, abs=5e-4) and threshold(6) == pytest.approx(0.0015, abs=5e-5)
    just = certify(Score(0.103, 0.0, 0.1025, 0.104, 9, 0, 9), 5)
    assert just.certified and just.unseen == pytest.approx(1 - 0.0681 / 0.103, abs=1e-3)
    assert not certify(Score(0.103, 0.0, 0.09, 0.2, 9, 0, 9), 5).certified
    assert certify(Score(0.9, 0.1, 0.8, 1.0, 9, 0, 9), 2).unseen == 0
    assert certify(Score(0.0, 0.0, 0.0, 0.1, 9, 0, 9), 6).unseen is None
    with pytest.raises(OptionError, match="`skill_rate`"):
        certify(Score(0.9, 0.1, 0.8, 1.0, 9, 0, 9), 2, skill_rate=2.0)
