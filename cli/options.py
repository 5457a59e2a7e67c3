"""Options spelled once, used by every command."""

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from surgery.tasks.examples import Columns
    from surgery.tasks.task import Task

_ALIKE = 0.75  # of the letters of a task's name and a preset's: sst3 and sst2

Output = Annotated[Path | None, typer.Option("-o", "--output", help="Folder to write.", show_default=False)]
NeededOutput = Annotated[
    Path | None, typer.Option("-o", "--output", help="Folder to write. Required.", show_default=False)
]
PatchedOutput = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Folder to write. Required, or --in-place.", show_default=False),
]
ExampleOutput = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Folder to write. Required but for the example.", show_default=False),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it is there.")]
OverwriteFile = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Device = Annotated[
    str | None, typer.Option(help="cuda, cuda:1, cpu, mps; default: cuda if there is one.", show_default=False)
]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.", show_default="float32")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what memory it needs, what is free and what to lower; do nothing else.")
]
Seed = Annotated[
    int, typer.Option(min=0, help="Number that decides every random choice; the same number gives the same result.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Examples scored at once.")]
Include = Annotated[
    list[str] | None,
    typer.Option(help="Tensors that may move, a shell pattern; may be repeated.", show_default="block weights"),
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Tensors that may not, a shell pattern; may be repeated.", show_default=False)
]

_TASK = "The task"
TASK_NAMES = "sst2, mr, cr, mpqa, subj, trec, agnews, mnli, snli, qnli, rte, qqp, mrpc, or a name of yours."
ExampleTaskName = Annotated[
    str | None, typer.Option("--task", help=f"{TASK_NAMES} Required but for the example.", rich_help_panel=_TASK)
]
NeededTaskName = Annotated[str | None, typer.Option("--task", help=f"{TASK_NAMES} Required.", rich_help_panel=_TASK)]
TaskNames = Annotated[
    str | None,
    typer.Option(
        "--tasks", help="Several tasks with commas: sst2,subj,trec.", show_default=False, rich_help_panel=_TASK
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        help="Folder with a folder a task of --tasks: DIR/sst2/train.jsonl, DIR/sst2/test.jsonl and so on.",
        show_default=False,
        rich_help_panel=_TASK,
    ),
]
_EXAMPLES = "Training examples: .jsonl, .csv, .tsv, .parquet or a dataset id."
Train = Annotated[str | None, typer.Option("--data", help=_EXAMPLES, rich_help_panel=_TASK)]
NeededTrain = Annotated[str | None, typer.Option("--data", help=f"{_EXAMPLES} Required.", rich_help_panel=_TASK)]
ExampleTrain = Annotated[
    str | None, typer.Option("--data", help=f"{_EXAMPLES} Required but for the example.", rich_help_panel=_TASK)
]
ExampleTest = Annotated[
    str | None,
    typer.Option(
        "--eval",
        help="Test examples: a file or dataset id, as for --data. Required but for the example.",
        rich_help_panel=_TASK,
    ),
]
Dev = Annotated[
    str | None,
    typer.Option(
        "--dev",
        help="Examples that decide when to stop early: a file or dataset id, as for --data.",
        rich_help_panel=_TASK,
    ),
]
Shots = Annotated[
    int | None,
    typer.Option(
        min=1, help="Use this many training examples of each label.", show_default="all", rich_help_panel=_TASK
    ),
]
Prompt = Annotated[
    str | None,
    typer.Option(
        help="Text around an example, with {text}, {mask} and {text_pair}; for a causal model it ends where the label word goes.",
        rich_help_panel=_TASK,
    ),
]
Word = Annotated[
    list[str] | None,
    typer.Option(
        help="Word that stands for a label, LABEL=WORD; may be repeated.",
        show_default="the preset's",
        rich_help_panel=_TASK,
    ),
]
Phrase = Annotated[
    list[str] | None,
    typer.Option(
        help="Phrase that stands for a label, LABEL=PHRASE, for sentence encoders; may be repeated.",
        show_default="the preset's",
        rich_help_panel=_TASK,
    ),
]
Column = Annotated[
    list[str] | None,
    typer.Option(
        help="Name of a column that is called otherwise: text=NAME, text_pair=NAME or label=NAME; may be repeated.",
        rich_help_panel=_TASK,
    ),
]
MaxLength = Annotated[
    int, typer.Option(min=8, help="Tokens a prompt may have; longer texts are cut.", rich_help_panel=_TASK)
]


def load_task(
    name: str | None,
    *,
    train: str | None = None,
    dev: str | None = None,
    test: str | None = None,
    shots: int | None = None,
    seed: int = 0,
    prompt: str | None = None,
    word: list[str] | None = None,
    phrase: list[str] | None = None,
    column: list[str] | None = None,
    max_length: int = 128,
) -> "Task":
    """The task that the options describe."""
    from surgery.errors import OptionError
    from surgery.tasks.presets import PRESETS
    from surgery.tasks.task import Task

    if name is None:
        raise OptionError("--task is missing: name a preset, such as sst2, or a task of your own")
    near = get_close_matches(name, PRESETS, 1, _ALIKE)
    if near and name not in PRESETS and prompt is None and not word and not phrase:
        raise OptionError(
            f"--task {name} is no preset: {near[0]} is; for a task of your own of that name give --prompt and --word, or --phrase"
        )
    causal = None
    if prompt is not None and "{mask}" not in prompt:
        causal, prompt = prompt, ""
    return Task.load(
        name,
        train=train or (),
        dev=dev or (),
        test=test or (),
        shots=shots,
        seed=seed,
        prompt=prompt,
        causal_prompt=causal,
        words=pairs(word, "--word") or None,
        phrases=pairs(phrase, "--phrase") or None,
        columns=named_columns(column),
        max_length=max_length,
    )


def load_tasks(names: str | None, root: Path | None, **options: Any) -> "list[Task]":
    """The tasks of `--tasks` in `--data-root`."""
    from surgery.tasks.collection import load_tasks as load

    return load(*split_tasks(names, root), **options)


def split_tasks(names: str | None, root: Path | None) -> tuple[list[str], Path]:
    """The names in `--tasks`, and `--data-root`; raises OptionError without either."""
    from surgery.errors import OptionError

    listed = [name.strip() for name in (names or "").split(",") if name.strip()]
    if not listed:
        raise OptionError("--tasks is missing: name presets with commas, such as sst2,subj")
    if root is None:
        raise OptionError("--data-root is missing: name the folder that has a folder a task")
    return listed, root


def named_columns(column: list[str] | None) -> "Columns | None":
    """`--column` as the library takes it; None where nothing is renamed."""
    from surgery.errors import OptionError
    from surgery.tasks.examples import Columns

    named = pairs(column, "--column")
    if unknown := set(named) - set(Columns._fields):
        raise OptionError(f"--column {min(unknown)}=...: only text, text_pair and label can be named")
    return Columns(**named) if named else None


def pairs(given: list[str] | None, option: str) -> dict[str, Any]:
    """`["a=b", "c=d"]` as a table; raises OptionError for one without an equals sign."""
    from surgery.errors import OptionError

    table = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise OptionError(f"{option} {text!r} must be NAME=VALUE")
        table[key] = value
    return table


def whole_number(text: str, option: str) -> int:
    """A whole number of 1 or more that may be written as 1e6; raises OptionError, naming the option, for anything else."""
    from surgery.errors import OptionError

    try:
        number = float(text)
    except ValueError:
        number = 0.5
    if number < 1 or not number.is_integer():
        raise OptionError(f"{option} {text} must be a whole number of 1 or more, such as 1e6")
    return int(number)


def need_output(output: Path | None) -> Path:
    """The output folder; raises OptionError without one."""
    from surgery.errors import OptionError

    if output is None:
        raise OptionError("-o is missing: name the folder to write")
    return output
