"""The sketch's inner loop on a CPU, compiled."""

from typing import Any, no_type_check

import numpy as np

from surgery.compiling import compiled

kernel = compiled()


@kernel
@no_type_check
def scatter(values: Any, slots: Any, out: Any) -> None:
    """Add values [rows, weights] to buckets [rows, width], in the order of the weights; a slot's last bit is its sign."""
    one, last = np.int32(1), np.int32(1)
    for row in range(values.shape[0]):
        for weight in range(values.shape[1]):
            slot = slots[weight]
            value = values[row, weight]
            out[row, slot >> one] += -value if slot & last else value
