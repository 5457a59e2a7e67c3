"""A small task that a tiny model can learn."""

import numpy as np
import pytest

from surgery.tasks.examples import Example
from surgery.tasks.task import Task

WORDS = (["terrible", "bad", "awful", "boring"], ["great", "good", "wonderful", "fun"])


@pytest.fixture(scope="session")
def task():
    random = np.random.default_rng(0)
    rows = [
        Example(f"The {random.choice(['film', 'book', 'food'])} was {random.choice(WORDS[k % 2])} .", "", label)
        for k in range(64)
        for label in [("negative", "positive")[k % 2]]
    ]
    return Task.load("sst2", train=rows[:40], test=rows[40:])
