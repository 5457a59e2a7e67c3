"""Order of a classifier's head: which of its outputs is which of a task's labels."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.errors import TaskError
from surgery.tasks.task import Task


def head_order(names: Sequence[str], task: Task) -> tuple[int, ...]:
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


def check_one_order(base: Checkpoint, tuned: Checkpoint, task: Task) -> None:
    """Refuse two classifiers whose heads give the task's labels in different orders: a graft has the base's head.

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


def _outputs(task: Task, order: Sequence[int]) -> list[str]:
    return [task.labels[order.index(output)] for output in range(len(order))]
