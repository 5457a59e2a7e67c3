"""TutorEval and dialogues: both revisions of a file, chapters cut to a context, grades, breakdowns, and the loss mask."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from surgery.errors import EvaluationError, OptionError
from surgery.evaluating.calls import Answer
from surgery.evaluating.tutoring.chapters import QUESTIONS
from surgery.evaluating.tutoring.dialogues import NOT_LEARNT, Dialogue, make_dialogues, read_dialogues
from surgery.evaluating.tutoring.questions import cut_chapter, read_questions
from surgery.evaluating.tutoring.run import evaluate_tutor, read_grades
from tests.evaluating.test_skillmix import Speaker

ROW = {"chapter": "A chapter.", "question": "Why?", "closed_book": True, "answer_in_chapter": "False", "misleading_question": 0,
       "difficulty": "hard", "domain": "physics", "path_to_chapter": "a/b"}  # fmt: skip


def grades(presentation, correctness):
    return lambda call: f"Well.\nPresentation: {presentation}/3\nCorrectness: {correctness}/3"


# -- questions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("points", "text"), [("one; two", "one; two"), (["one", " two "], "- one\n- two")])
def test_both_revisions_of_key_points(tmp_path, points, text):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**ROW, "key_points": points}]), tmp_path / "q.parquet")
    (tmp_path / "q.jsonl").write_text(json.dumps({**ROW, "key_points": points}) + "\n")
    for name in ("q.parquet", "q.jsonl"):
        question = read_questions(tmp_path / name)[0]
        assert question.key_points == text and question.place == "a/b"
        assert (question.closed_book, question.answer_in_chapter, question.misleading) == (True, False, False)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"key_points": None}, "row 1: no key_points"), ({"question": " "}, "row 1: no question"), ({"key_points": []}, "no key_points"),
     ({"misleading_question": "physics"}, "misleading_question is 'physics', neither true nor false: is the row shifted")],
)  # fmt: skip
def test_rows_that_lack_something_are_named(tmp_path, change, said):
    (tmp_path / "q.jsonl").write_text(json.dumps({**ROW, "key_points": "k", **change}) + "\n")
    with pytest.raises(EvaluationError, match=said):
        read_questions(tmp_path / "q.jsonl")
    for name, content in (("gone.parquet", None), ("bad.parquet", "no"), ("empty.jsonl", "")):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(EvaluationError, match=r"no such file|can't be read|holds no questions"):
            read_questions(tmp_path / name)


def test_a_chapter_is_cut_to_whole_paragraphs_then_words():
    def count(text):
        return len(text.split())

    chapter = "one two three\n\nfour five\n\nsix seven eight"
    assert cut_chapter(chapter, 8, count) == (chapter, False)
    assert cut_chapter(chapter, 7, count) == ("one two three\n\nfour five", True)
    assert cut_chapter(chapter, 4, count) == ("one two three", True)
    assert cut_chapter("one two three", 2, count) == ("one two", True)


# -- grades -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [("Presentation: 2/3\nCorrectness: 1.5/3", (2, 1.5)), ("**Presentation**: 3/3 **Correctness:** 0/3", (3, 0)), ("presentation 2.0\ncorrectness 1", (2, 1)),
     ("Correctness: 1/3 ... no: Presentation: 3/3\nCorrectness: 2.5/3", (3, 2.5)), ("Presentation: 3/3", None), ("", None), ("Presentation: 4/3\nCorrectness: 1/3", None),
     ("Presentation: 2/3\nCorrectness: 5.0", None), ("Presentation: 2/3\nCorrectness: 2.3/3", None), ("Presentation: good\nCorrectness: good", None),
     ("Presentation: 2/3\nCorrectness: 30/3", None)],
)  # fmt: skip
def test_grades_are_halves_from_0_to_3_or_missing(reply, wanted):
    assert read_grades(reply) == wanted


def tutor(says=lambda call: "An answer.", grading=None, **options):
    speaker = Speaker(says, "tutor")
    found = evaluate_tutor(
        speaker,
        data=QUESTIONS,
        graders=options.pop("graders", [Speaker(grading or grades(2, 1.5), "grader")]),
        **options,
    )
    return found, speaker


def test_scores_are_of_100_and_clustered_by_chapter():
    found, speaker = tutor()
    assert found.table()[1][0][:2] == ["correctness", 50.0] and found.table()[1][1][1] == pytest.approx(200 / 3)
    assert found.score("correctness").clusters == 3 and len(found.items) == len(QUESTIONS)
    assert set(found.by("domain")) == {"physics", "biology", "statistics"} and set(found.by("misleading")) == {
        "yes",
        "no",
    }
    assert all(
        question.chapter in call.messages[0].content for question, call in zip(QUESTIONS, speaker.asked, strict=True)
    )
    closed, speaker = tutor(closed_book=True)
    assert len(closed.items) == sum(question.closed_book for question in QUESTIONS) == 5
    assert not any("chapter of a textbook" in call.messages[0].content for call in speaker.asked)


def test_graders_see_key_points_and_are_averaged():
    asked = []

    def grading(call):
        asked.append(call)
        return grades(3, [1, 2][call.seed % 2])(call)

    found, _ = tutor(grading=grading, gradings=2)
    assert found.score("correctness").value == 1.5
    assert all(question.key_points in "".join(call.messages[0].content for call in asked) for question in QUESTIONS)
    assert sum("The question is misleading" in call.messages[0].content for call in asked) == 2


def test_wrong_forms_and_silence_are_missing_with_a_reason():
    found, _ = tutor(says=lambda call: None if "twelve hours" in call.messages[0].content else "x",
                     grading=lambda call: "nine of ten" if "holes in bread" in call.messages[0].content else grades(2, 3)(call))  # fmt: skip
    score = found.score("correctness")
    assert (score.value, score.missing) == (3.0, 2)
    assert sorted(item.note for item in found.items if item.note) == ["no answer in time", "the gradings can't be read"]


def test_chapters_beyond_the_context_are_cut_and_said():
    speaker = Speaker(lambda call: "x", "tutor")
    speaker.context = 150
    found = evaluate_tutor(speaker, data=QUESTIONS, graders=[Speaker(grades(1, 1), "g")], max_tokens=20)
    assert all(len(call.messages[0].content.split()) + 20 <= 150 for call in speaker.asked)
    assert all(item.labels["chapter cut"] == "yes" for item in found.items)
    assert found.remarks[0].startswith("8 of 8 chapters are longer than the model's context")
    with pytest.raises(OptionError, match="`max_tokens` 140 leaves no room for a chapter"):
        evaluate_tutor(speaker, data=QUESTIONS, graders=[Speaker(grades(1, 1), "g")], max_tokens=140)
    with pytest.raises(OptionError, match="`grader` is missing"):
        evaluate_tutor(speaker, data=QUESTIONS, graders=[])


# -- dialogues ----------------------------------------------------------------------------------------------------------


def talk(
    tmp_path,
    mode="openbook",
    teacher=lambda call: f"teach {len(call.messages)}",
    student=lambda call: f"ask {len(call.messages)}",
    **options,
):
    (tmp_path / "book.md").write_text("The chapter.")
    return make_dialogues(
        tmp_path / "book.md", Speaker(teacher, "t"), Speaker(student, "s"), mode=mode, count=2, turns=4, **options
    )


@pytest.mark.parametrize(
    ("mode", "roles", "learn"),
    [("openbook", ["chapter", "user", "assistant", "user", "assistant"], [0, 0, 1, 0, 1]),
     ("closedbook", ["assistant", "user", "assistant", "user"], [1, 0, 1, 0]), ("exam", ["user", "assistant", "user", "assistant"], [1, 1, 1, 1])],
)  # fmt: skip
def test_only_the_teacher_is_learnt_but_in_exams(tmp_path, mode, roles, learn):
    made = talk(tmp_path, mode)
    for dialogue in made.dialogues:
        assert [role for role, _ in dialogue.messages] == roles and list(dialogue.learn) == [
            bool(each) for each in learn
        ]
    made.save(tmp_path / "out")
    assert read_dialogues(tmp_path / "out" / "dialogues.jsonl") == list(made.dialogues)


def test_each_side_sees_the_chapter_and_itself_as_the_assistant(tmp_path):
    seen = []
    talk(tmp_path, teacher=lambda call: seen.append(call) or "t", student=lambda call: "s")
    assert all("The chapter." in call.messages[0].content and call.messages[0].role == "user" for call in seen)
    assert [[m.role for m in call.messages] for call in seen[::2]] == [["user"], ["user", "assistant", "user"]]


def test_a_dialogue_without_an_answer_is_left_out_and_counted(tmp_path):
    made = talk(tmp_path, teacher=lambda call: None if call.seed == 0 else "t")
    assert (len(made.dialogues), made.missing) == (1, 1)


def test_tokens_and_labels_are_as_long_and_only_learnt_turns_are_labels(tiny):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny("llama"))
    dialogue = Dialogue.of("openbook", [("chapter", "the film"), ("user", "it was"), ("assistant", "good")])
    ids, labels = dialogue.encode(tokenizer)
    assert len(ids) == len(labels)
    learnt = [token for token, label in zip(ids, labels, strict=True) if label != NOT_LEARNT]
    assert learnt == tokenizer(f"\nassistant: good{tokenizer.eos_token}", add_special_tokens=False)["input_ids"]
    assert all(label in (token, NOT_LEARNT) for token, label in zip(ids, labels, strict=True))
    exam = Dialogue.of("exam", [("user", "it was"), ("assistant", "good")]).encode(tokenizer)
    assert exam[0] == exam[1]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"mode": "openbook"}',
        '{"mode": "x", "messages": [], "learn": []}',
        '{"mode": "exam", "messages": [{"role": "user", "content": "a"}], "learn": []}',
    ],
)
def test_files_that_hold_no_dialogues(tmp_path, line):
    (tmp_path / "d.jsonl").write_text(line + "\n")
    with pytest.raises(EvaluationError, match="line 1"):
        read_dialogues(tmp_path / "d.jsonl")


def test_books_and_options_are_checked_first(tmp_path):
    (tmp_path / "empty.md").write_text(" ")
    speaker = Speaker(lambda call: Answer(), "never")
    for book, said in ((tmp_path / "empty.md", "is empty"), (tmp_path / "gone.md", "can't be read")):
        with pytest.raises(EvaluationError, match=said):
            make_dialogues(book, speaker, speaker)
    for options, said in (({"mode": "x"}, "`mode` x"), ({"turns": 1}, "`turns` 2 or more")):
        with pytest.raises(OptionError, match=said):
            make_dialogues(tmp_path / "empty.md", speaker, speaker, **options)
