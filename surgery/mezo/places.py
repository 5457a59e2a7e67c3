"""Places: which noise is meant, and sums of several."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Place(NamedTuple):
    """Which noise: the number of the tensor, the step and the direction of that step."""

    tensor: int
    step: int
    direction: int = 0


class Terms(NamedTuple):
    """A sum of noises, in this order: its steps, their directions and what each is multiplied by, [terms] each."""

    steps: NDArray[np.uint32]
    directions: NDArray[np.uint32]
    scales: NDArray[np.float32]
