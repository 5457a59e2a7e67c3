"""A sweep that was stopped goes on from the last number of weights that was located."""

import json

import pytest
import torch
from safetensors.torch import save_file

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.low_rank import Factors
from surgery.grafting import search
from surgery.grafting.candidates import Candidates
from surgery.grafting.localization import graft
from surgery.grafting.products import Product, kept_product
from surgery.resuming import StateError
from tests.support.tiny import perturb
from tests.tuning.test_tuning import task


def test_a_stopped_sweep_goes_on_to_the_same_skill(tiny, tmp_path, monkeypatch):
    perturb(tiny("gpt2"), tmp_path / "tuned", count=200)
    real, located = search.locate, []

    def locate(method, grafted, evidence, k, **options):
        located.append(k)
        if len(located) == 3:
            raise KeyboardInterrupt
        return real(method, grafted, evidence, k, **options)

    def run(**options):
        pair = tiny("gpt2"), tmp_path / "tuned"
        return graft(*pair, task(), weights=40, sweep=[0.001, 0.01], seed=1, device="cpu", **options)

    whole = run()
    monkeypatch.setattr(search, "locate", locate)
    with pytest.raises(KeyboardInterrupt):
        run(resume=tmp_path / "state")
    again = run(resume=tmp_path / "state")
    assert located == [*sorted(located[:3]), located[2]]  # the third alone is located again
    assert again.delta.to_bytes() == whole.delta.to_bytes()
    figures = [[{**point, "seconds": 0} for point in skill.report["points"]] for skill in (whole, again)]
    assert figures[0] == figures[1]
    with pytest.raises(StateError, match="is the state of another run"):
        graft(tiny("gpt2"), tmp_path / "tuned", task(), weights=41, device="cpu", resume=tmp_path / "state")


BOUNDS = {"names": ["w"], "bounds": [0, 3], "movable": 12, "moved": 9, "seconds": 0.5, "steps": 2}


def held(tiny, count=3):
    """A base, and a product of some of the first block tensor's weights."""
    base = Checkpoint(tiny("gpt2"))
    name = base.block_weights()[0]
    values = base.tensor(name).reshape(-1)[:count].float()
    return base, Candidates((name,), (0, count), torch.arange(count), values, values + 1, movable=12, moved=9)


def test_a_product_comes_back_as_it_was_kept(tiny, tmp_path):
    base, support = held(tiny)
    made = kept_product(tmp_path / "3.safetensors", base, lambda: Product(support, None, steps=7))
    found = kept_product(tmp_path / "3.safetensors", base, lambda: pytest.fail("made again"))
    assert (found.seconds, found.steps, len(found)) == (made.seconds, 7, 3)
    for key in ("names", "bounds", "movable", "moved"):
        assert getattr(found.support, key) == getattr(support, key)
    assert all(torch.equal(getattr(found.support, key), getattr(support, key)) for key in ("indices", "base", "tuned"))
    factors = {support.names[0]: Factors(torch.ones(base.entries[support.names[0]].shape[0], 1), torch.ones(1, 1))}
    size = base.entries[support.names[0]].size // len(factors[support.names[0]].left)
    factors = {name: own._replace(right=torch.ones(1, size)) for name, own in factors.items()}
    kept_product(tmp_path / "4.safetensors", base, lambda: Product(None, factors))
    again = kept_product(tmp_path / "4.safetensors", base, lambda: pytest.fail("made again"))
    assert all(map(torch.equal, again.factors[support.names[0]], factors[support.names[0]]))


@pytest.mark.parametrize(
    "indices",
    [[0.5], [[1]], [1, 1, 2], [-1, 0, 1], [0, 1, 1 << 40], [0, 1], []],
    ids=["floats", "table", "twice", "below", "above", "fewer", "none"],
)
def test_a_product_that_no_one_made_here_is_refused(tiny, tmp_path, indices):
    base, support = held(tiny)
    index = torch.tensor(indices) if indices else torch.tensor([], dtype=torch.int64)
    about = {**BOUNDS, "names": list(support.names)}
    save_file(
        {"indices": index, "values": support.tuned}, tmp_path / "3.safetensors", metadata={"about": json.dumps(about)}
    )
    with pytest.raises(StateError, match="can't be read"):
        kept_product(tmp_path / "3.safetensors", base, lambda: pytest.fail("made again"))
