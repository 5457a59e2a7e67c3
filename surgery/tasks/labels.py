"""Names of labels: a label's own in any case, an alias, or the number that a dataset or a head has for it."""

import re
from collections.abc import Sequence

from surgery.tasks.presets import PRESETS

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
