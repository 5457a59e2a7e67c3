"""Which of a task's labels a name stands for: its own, in any case, an alias, or the number of a dataset or a head."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from surgery.errors import TaskError
from surgery.tasks.presets import PRESETS

if TYPE_CHECKING:
    from surgery.checkpoints.checkpoint import Checkpoint
    from surgery.tasks.task import Task

# One table for all tasks: a head may say POSITIVE where the data of a task of one's own say pos, and the reverse.
_ALIASES = {alias.lower(): label for preset in PRESETS.values() for alias, label in preset.aliases.items()}


def known_names(labels: Sequence[str], integers: Sequence[str] = ()) -> dict[str, str]:
    """Plain name (see `plain`) -> the label it stands for.

    Args:
        integers: the labels in the order of the numbers 0, 1, ... that stand for them (`0`, `LABEL_0`). Without them,
            numbers are understood only where the labels are numbers themselves.
    """
    names: dict[str, str] = {}
    for alias, name in _ALIASES.items():
        for label in labels:
            if plain(label) in (alias, plain(name)):
                names |= {alias: label, plain(name): label}
    numbered = list(enumerate(integers)) or [(int(plain(label)), label) for label in labels if plain(label).isdecimal()]
    names |= {str(number): label for number, label in numbered}
    own = [plain(label) for label in labels]
    return names | {name: label for name, label in zip(own, labels, strict=True) if own.count(name) == 1}


def plain(name: str) -> str:
    """A name without what people spell differently: case, blanks, hyphens; `LABEL_1` is `1`."""
    return re.sub(r"^label_(?=\d+$)", "", re.sub(r"[\s_-]+", "_", name.strip().lower()))


def merged(labels: Sequence[str], others: Sequence[str]) -> list[str]:
    """The labels, and those of the others that are none of them under another name; sorted."""
    names = known_names(labels)
    return sorted({*labels, *(other for other in others if other not in labels and plain(other) not in names)})


def head_order(names: Sequence[str], task: "Task") -> tuple[int, ...]:
    """For each of the task's labels, which output of a classifier's head is its.

    Args:
        names: the head's labels in the order of its outputs, `config.id2label`.

    Raises:
        TaskError: another number of labels, other names, or `LABEL_0, LABEL_1` and so on and a task without numbers.
    """
    if len(names) != len(task.labels):
        raise TaskError(
            f"the checkpoint's head has {len(names)} labels, task {task.name} has {len(task.labels)}: use a head that was made for the task"
        )
    meant = [task.label_of(name) for name in names]
    lost = [label for label in task.labels if label not in meant]
    if lost and all(re.fullmatch(r"label_\d+|\d+", name.lower()) for name in names):
        raise TaskError("the checkpoint's head doesn't name its labels: set id2label and label2id in its config.json")
    if lost:
        raise TaskError(
            f"the checkpoint's head knows {', '.join(name.lower() for name in names)}, but not the task's label {lost[0]!r}: rename the labels in the data"
        )
    return tuple(meant.index(label) for label in task.labels)


def head_names(config: Any) -> list[str]:
    """A head's labels in the order of its outputs."""
    named: Mapping[int, Any] = config.id2label
    return [str(named.get(number, f"LABEL_{number}")) for number in range(config.num_labels)]


def check_one_order(base: "Checkpoint", tuned: "Checkpoint", task: "Task") -> None:
    """Refuse two classifiers whose heads give the task's labels in different orders: a graft wears the base's head.

    Raises TaskError, naming both.
    """
    if base.structure.kind != "classifier":
        return
    from transformers import AutoConfig

    orders = {}
    for checkpoint in (base, tuned):
        names = head_names(
            AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
        )
        try:
            orders[checkpoint] = head_order(names, task)
        except TaskError as error:
            raise TaskError(f"{checkpoint}: {error}") from None
        if orders[checkpoint] != orders[base]:
            first, second = (", ".join(_outputs(task, orders[side])) for side in (base, tuned))
            raise TaskError(
                f"the head of {base} gives the labels in the order {first}, that of {tuned} in the order {second}: "
                "write the right id2label and label2id into both config.json, or tune the base with its own"
            )


def _outputs(task: "Task", order: Sequence[int]) -> list[str]:
    return [task.labels[order.index(output)] for output in range(len(order))]
