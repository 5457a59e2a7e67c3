"""Questions on chapters, read from the user's file or dataset in either published revision.

After Chevalier et al. 2024, Language Models as Science Tutors (arXiv:2402.11111), section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.errors import EvaluationError, TaskError
from surgery.tasks.data_files import READERS, read_dataset

_TRUE, _FALSE = ("true", "yes", "1", "1.0"), ("false", "no", "0", "0.0", "none", "nan", "")


@dataclass(frozen=True)
class Question:
    """A question with the key points of a good answer, and the chapter it is about.

    Attributes:
        place: what the chapter is called: questions of one chapter belong together.
        closed_book: whether it can be understood without the chapter.
    """

    question: str
    key_points: str
    chapter: str
    place: str
    domain: str = ""
    difficulty: str = ""
    closed_book: bool = False
    answer_in_chapter: bool = False
    misleading: bool = False


def read_questions(source: str | Path) -> list[Question]:
    """Questions of a .parquet, .jsonl, .csv or .tsv file, else of a dataset id; key points may be a text or a list of texts.

    Raises:
        EvaluationError: unreadable, or a row without a question, key points or chapter, by its number.
    """
    path = Path(source).expanduser()
    reader = READERS.get(path.suffix.lower())
    try:
        if reader is not None and not path.is_file():
            raise EvaluationError(f"`data` {path}: there is no such file")
        rows = read_dataset(str(source), "train") if reader is None else reader(path)
    except (OSError, TaskError, UnicodeError) as error:
        raise EvaluationError(
            f"`data` {source} can't be read ({error}): give a file of questions or a dataset id"
        ) from None
    if not rows:
        raise EvaluationError(f"`data` {source} holds no questions")
    return [_question(f"`data` {source}, row {number}", row) for number, row in rows]


def _question(where: str, row: dict[str, Any]) -> Question:
    texts = {name: _text(row.get(name)) for name in ("question", "key_points", "chapter")}
    for name, text in texts.items():
        if not text:
            raise EvaluationError(f"{where}: no {name} (columns here: {', '.join(map(str, row))})")
    return Question(
        texts["question"],
        texts["key_points"],
        texts["chapter"],
        _text(row.get("path_to_chapter")) or texts["chapter"][:80],
        _text(row.get("domain")),
        _text(row.get("difficulty")),
        _flag(where, "closed_book", row.get("closed_book")),
        _flag(where, "answer_in_chapter", row.get("answer_in_chapter")),
        _flag(where, "misleading_question", row.get("misleading_question")),
    )


def _text(value: Any) -> str:
    """A text, or the texts of a list as lines with dashes."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\n".join(f"- {text.strip()}" for text in map(str, value) if text.strip())
    return "" if value is None else str(value).strip()


def _flag(where: str, name: str, value: Any) -> bool:
    text = str(value).strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise EvaluationError(f"{where}: {name} is {str(value)[:30]!r}, neither true nor false: is the row shifted?")


def cut_chapter(chapter: str, tokens: int, count: Any) -> tuple[str, bool]:
    """A chapter's beginning that has at most so many tokens, whole paragraphs, or of the first one whole words; and whether it was cut.

    Args:
        count: gives the tokens of a text.
    """
    if count(chapter) <= tokens:
        return chapter, False
    kept = ""
    for paragraph in chapter.split("\n\n"):
        longer = f"{kept}\n\n{paragraph}" if kept else paragraph
        if count(longer) > tokens:
            break
        kept = longer
    if kept:
        return kept, True
    words = chapter.split(" ")
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        if count(" ".join(words[:middle])) <= tokens:
            low = middle
        else:
            high = middle - 1
    return " ".join(words[:low]), True
