"""A model of nine weights in which each method has its own right answer, and what a seed decides."""

import pytest
import torch
import torch.nn.functional as F

from surgery.grafting import methods
from surgery.grafting.candidates import GraftedModel
from surgery.grafting.localization import _sample
from surgery.grafting.methods import METHODS, Evidence, locate
from surgery.tasks.examples import Example
from surgery.tasks.readout import Encoded

# Which of the nine weights each method should find among those that moved furthest (the first three), those that say the
# labels (the next), and those that say what the tuned model predicts (the last).
RIGHT = {"movement": [0, 1, 2], "sigmoid": [3, 4, 5], "dual-averaging": [6, 7, 8]}


class Planted(GraftedModel):
    """A logistic model over nine inputs; 80 examples whose labels and tuned predictions are drawn apart."""

    def __init__(self, seed=0):
        random = torch.Generator().manual_seed(seed)
        self.labels, self.predicted = (torch.randint(2, (80,), generator=random) for _ in range(2))
        noise = torch.randn(80, 9, generator=random)
        noise[:, 3:] *= 0.3
        noise[:, 3:6] += 2.0 * self.labels[:, None] - 1
        noise[:, 6:] += 2.0 * self.predicted[:, None] - 1
        self.inputs = noise
        self.delta = torch.tensor([1.1, 1.05, 1.02, 1.0, 0.95, 0.9, 0.98, 0.93, 0.91])
        self.mask = torch.zeros(9)
        self.seen = []

    @property
    def evidence(self):
        rows = [Encoded([number], [0], 0) for number in range(80)]
        return Evidence(rows, self.labels, F.one_hot(self.predicted, 2).float())

    def set_mask(self, mask):
        self.mask = mask.float()

    def set_chosen(self, chosen):
        self.mask = torch.zeros(9).index_fill(0, chosen, 1.0)

    def scores(self, rows):
        return self._scores(rows, self.mask)

    def mask_gradient(self, rows, targets):
        self.seen.append([row.ids[0] for row in rows])
        mask = self.mask.clone().requires_grad_()
        F.cross_entropy(self._scores(rows, mask), targets).backward()
        return mask.grad

    def _scores(self, rows, mask):
        score = self.inputs[[row.ids[0] for row in rows]] @ (mask * self.delta)
        return torch.stack((-score, score), 1) / 2


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", METHODS)
def test_each_method_finds_what_it_and_no_other_looks_for(method, seed):
    model = Planted(seed)
    assert sorted(locate(method, model, model.evidence, 3, seed=seed).tolist()) == RIGHT[method]


@pytest.mark.parametrize("method", ["dual-averaging", "sigmoid"])
def test_a_seed_decides_which_examples_are_looked_at_and_when(method):
    def seen(seed):
        model = Planted()
        locate(method, model, model.evidence, 3, seed=seed)
        return model.seen

    first = seen(0)
    assert first == seen(0) and first != seen(1)


def test_every_pass_looks_at_all_examples_in_another_order():
    model = Planted()
    locate("dual-averaging", model, model.evidence, 3)
    batches = model.seen
    assert {len(batch) for batch in batches} == {32} and len(batches) == 8 + 25
    for first, second in zip(batches[::2], batches[1::2], strict=False):
        assert len({*first, *second}) == 64  # two batches a pass of 80
    assert batches[0] != batches[2]


def test_the_budget_narrows_to_its_size_over_the_first_rounds(monkeypatch):
    chosen = []
    real = Planted.set_chosen
    monkeypatch.setattr(Planted, "set_chosen", lambda self, some: chosen.append(len(some)) or real(self, some))
    model = Planted()
    locate("dual-averaging", model, model.evidence, 2)
    widths = chosen[:25]
    assert widths[0] == 8 and widths == sorted(widths, reverse=True) and widths[15:] == [2] * 10 and widths[7] == 4


def test_saliency_is_the_mean_along_the_straight_path_from_base_to_tuned(monkeypatch):
    """All along the path the last three weights gain, at its end three others more."""
    model, shares = Planted(), []
    model.delta = 1.0 + 1e-4 * model.delta  # movement hardly tells them apart

    def gradient(rows, targets):
        if len(shares) > 8 or not (model.mask == model.mask[0]).all() or float(model.mask[0]) in (0.0, 1.0):
            return torch.zeros(9)
        shares.append(float(model.mask[0]))
        end = len(shares) == 8
        return -torch.tensor([0.0] * 3 + [2.0 * end] * 3 + [1.0 - end] * 3)

    monkeypatch.setattr(model, "mask_gradient", gradient)
    assert sorted(locate("dual-averaging", model, model.evidence, 3).tolist()) == [6, 7, 8]
    assert shares == pytest.approx([(step + 0.5) / 8 for step in range(8)])


def test_of_score_and_movement_what_comes_closer_to_the_tuned_model_stays(monkeypatch):
    """Where saliency points at weights that do harm, those that moved furthest are taken."""
    model = Planted()
    evidence = model.evidence._replace(soft=F.one_hot(torch.ones(80, dtype=torch.long), 2).float())
    model.inputs[:, :3] = model.inputs[:, :3].abs()  # those that moved furthest say what is predicted here
    monkeypatch.setattr(model, "mask_gradient", lambda rows, targets: torch.tensor([1.0] * 6 + [-1.0] * 3))
    assert sorted(locate("dual-averaging", model, evidence, 3).tolist()) == [0, 1, 2]
    model.inputs[:, 6:] = 2 * model.inputs[:, :3]
    assert sorted(locate("dual-averaging", model, evidence, 3).tolist()) == [6, 7, 8]


def test_of_many_examples_as_many_as_the_paper_took_are_drawn_by_seed():
    examples = [Example(str(number), "", "a") for number in range(1500)]
    first, again, other = (_sample(examples, seed) for seed in (0, 0, 1))
    assert len(first) == len(set(first)) == 1024 and first == again and set(first) != set(other)
    assert _sample(examples[:1024], 0) == examples[:1024]
    assert tuple(range(10, 101, 10)) == methods._EPOCHS  # the paper's range
