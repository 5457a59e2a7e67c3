"""Formal skills: checks, texts that a program writes, balanced groups, and both readings on models that are made up."""

import math
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import EvaluationError, OptionError
from surgery.evaluating.calls import Answer
from surgery.evaluating.formal.items import OPTIONS, draw_groups, draw_skills, prompt
from surgery.evaluating.formal.run import evaluate_formal
from surgery.evaluating.formal.skills import FORMAL_SKILLS, check, compatible, example, instruction, parse, skill_ids
from surgery.evaluating.formal.writer import TOPICS, shows, write, write_neutral
from tests.evaluating.checker_texts import TEXTS

CASES = [(name, text, wanted) for name, pair in TEXTS.items() for texts, wanted in zip(pair, (True, False), strict=True) for text in texts]  # fmt: skip


def test_every_skill_has_ten_texts_of_each_kind():
    assert {name.partition(":")[0] for name in TEXTS} == set(FORMAL_SKILLS)
    assert all(len(set(passing)) == len(set(failing)) == 10 for passing, failing in TEXTS.values())


@pytest.mark.parametrize(("name", "text", "wanted"), CASES)
def test_checks(name, text, wanted):
    assert check(name, text) is wanted
    assert check(name, f"\n {text} \n") is wanted  # what is around it doesn't count


@given(st.text(), st.sampled_from(skill_ids()))
def test_checks_take_any_text_and_say_the_same_twice(text, name):
    assert check(name, text) is check(name, text)


@pytest.mark.parametrize(
    ("name", "said"),
    [("rhyme", "no formal skill"), ("", "no formal skill"), ("sentences", "takes a value"), ("question:3", "takes no value"),
     ("sentences:0", "no value of"), ("sentences:x", "no value of"), ("word:two words", "no value of"), ("lipogram:E", "no value of")],
)  # fmt: skip
def test_unknown_ids_and_values_are_errors(name, said):
    for use in (parse, instruction, example, lambda name: check(name, "text"), lambda name: write("rain", [name])):
        with pytest.raises(EvaluationError, match=said):
            use(name)


def test_examples_show_their_skills_and_go_into_the_prompt():
    for name in skill_ids():
        assert check(name, example(name)), name
    asked = prompt("rain", ("question", "sentences:2"))
    assert asked.endswith("Write a short text about rain that ends with a question and has exactly two sentences.")
    assert example("question") in asked and example("sentences:2") in asked
    assert "tea" not in prompt("rain", ("sentences:7",)) and prompt("rain") == "Write a short text about rain."


def test_texts_show_what_they_are_written_for_and_nothing_they_must_not():
    for number, name in enumerate(skill_ids()):
        topic = TOPICS[number % len(TOPICS)]
        assert check(name, text := write(topic, [name], seed=number)) and topic in text.lower()
        assert write(topic, [name], seed=number) == text
    for one, other in combinations(skill_ids(), 2):
        if compatible(one, other):
            assert shows(write("rain", [one, other], seed=1), [one, other]), (one, other)
    for seed in range(20):
        text = write_neutral("cats", seed)
        assert not any(check(name, text) for name, skill in FORMAL_SKILLS.items() if not skill.values)
    with pytest.raises(EvaluationError, match="came of 400 tries"):
        write("rain", ["uppercase"], without=[["uppercase"]])


def test_every_topic_can_do_without_the_letter():
    assert not any("e" in topic for topic in TOPICS)
    assert all(check("lipogram:e", write(topic, ["lipogram:e"])) for topic in TOPICS)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_groups_are_balanced_and_exact(k):
    groups = draw_groups(k, 15, seed=4)
    assert groups == draw_groups(k, 15, seed=4) and groups != draw_groups(k, 15, seed=5)
    for group in groups:
        assert len(set(group.skills)) == len(group.texts) == OPTIONS
        for text, own in zip(group.texts, group.skills, strict=True):
            assert [skills for skills in group.skills if shows(text, skills)] == [own]
    assert not any(FORMAL_SKILLS[name.partition(":")[0]].quotes for group in groups for s in group.skills for name in s)


def test_300_items_of_both_k_have_every_skill_about_as_often():
    for k, least in ((1, 5), (2, 5)):
        groups = draw_groups(k, 75, seed=0)
        counts = Counter(name for group in groups for skills in group.skills for name in skills)
        assert set(counts) == set(skill_ids(quoting=False)) and min(counts.values()) >= least
    sets = draw_skills(2, 300, seed=0)
    assert max(Counter(sets).values()) - min(Counter(sets).values()) <= 1


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(OptionError, match="`k` 5 must be 1 to 4"):
        draw_skills(5, 3, 0)
    with pytest.raises(EvaluationError, match="no 2 of the skills"):
        draw_skills(2, 3, 0, ["lowercase", "uppercase"])
    with pytest.raises(EvaluationError, match="give no 3 groups of 4 sets"):
        draw_groups(1, 3, 0, ["question", "json"])


class Reader:
    """A model whose likelihood of a text after an instruction is what `likes(asked, text)` says."""

    def __init__(self, likes, name="reader"):
        self.likes, self.name = likes, name
        self.identity, self.context, self.remarks = {"weights": name}, None, ()

    def answer(self, calls, given, failed):
        for number, call in enumerate(calls):
            asked = call.messages[-1].content
            if call.continuation is None:
                given(number, Answer(text=self.likes(asked, None), tokens=1))
            else:
                value = self.likes(asked, call.continuation)
                given(
                    number, Answer(log_likelihood=float(value)) if value is not None else Answer(error="no such thing")
                )

    def count_tokens(self, text):
        return len(text.split())


def fits(asked, text):
    """Whether a text shows what the last line asks for."""
    own = [name for name in skill_ids() if instruction(name) in asked.splitlines()[-1]]
    return float(shows(text, own))


# Every text has a number of sentences, neutral ones too: without these skills a reader that knows is always right.
NAMES = [name for name in skill_ids(quoting=False) if not name.startswith(("sentences", "short"))]


def reading(likes, k=1, items=40):
    return evaluate_formal(Reader(likes), k=(k,), items=items, readings=["likelihood"], skills=NAMES)


@pytest.mark.parametrize("k", [1, 2])
def test_a_reader_that_knows_is_always_right(k):
    found = reading(fits, k)
    assert found.score("likelihood").value == 1.0 and len(found.items) == 40
    assert found.score("likelihood").low == pytest.approx(0.722, abs=0.001)  # Wilson's, of ten groups


@pytest.mark.parametrize(
    "likes",
    [lambda asked, text: -len(text), lambda asked, text: -len(asked), lambda asked, text: 0.0,
     lambda asked, text: -len(asked) - 3.0 * len(text)],
)  # fmt: skip
def test_what_knows_only_the_text_or_only_the_instruction_is_at_chance_exactly(likes):
    found = reading(likes)
    assert found.score("likelihood").value == found.score("likelihood with priors").value == 0.25


def test_an_instructions_prior_is_taken_out():
    """A reader that knows, but likes some instructions much better than others, is right once their priors are out."""
    found = reading(lambda asked, text: fits(asked, text) + 5.0 * (len(asked) % 7))
    assert found.score("likelihood").value == 1.0
    assert found.score("likelihood with priors").value < 0.5


def test_one_missing_likelihood_makes_its_group_missing_and_nothing_zero():
    lost = draw_groups(1, 10, 0, NAMES)[3].texts[2]
    found = reading(lambda asked, text: None if text == lost else fits(asked, text))
    score = found.score("likelihood")
    assert (score.value, score.missing, score.items, score.clusters) == (1.0, 4, 40, 9)
    assert {item.note for item in found.items if item.values["likelihood"] is None} == {"no such thing"}
    assert "4 of 40 items are missing" in found.summary[-1]


def test_generations_are_checked_and_unprompted_texts_beside_them():
    def writes(asked, _):
        return "What is it about?" if "question" in asked.splitlines()[-1] else "rain"

    found = evaluate_formal(Reader(writes), k=(1,), items=60, readings=["generation"], skills=["question", "json"])
    assert found.score("generation").value == 0.5
    assert found.score("unprompted").value == 0.0
    assert math.isclose(found.score("generation", found.by("skill")["question"]).value, 1.0)
    told = evaluate_formal(
        Reader(lambda *_: "What is it about?"), k=(1,), items=8, readings=["generation"], skills=["question"]
    )
    assert told.score("generation").value == told.score("unprompted").value == 1.0


@pytest.mark.parametrize(
    ("options", "said"),
    [({"items": 3}, "`items` 3 are too few"), ({"readings": ["speed"]}, "isn't one of likelihood, generation"), ({"k": (0,)}, "`k` 0 must be"),
     ({"skills": ["nonsense"]}, "no formal skill"), ({"floor": (0.1,)}, "`floor` is the noise of what `against` names")],
)  # fmt: skip
def test_options_are_checked_first(options, said):
    def never(*_):
        raise AssertionError("asked")

    with pytest.raises((OptionError, EvaluationError), match=said):
        evaluate_formal(Reader(never), **options)
    with pytest.raises(OptionError, match="needs weights"):
        evaluate_formal("openai:m@http://localhost:1/v1", readings=["likelihood"])
