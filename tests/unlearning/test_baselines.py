"""What masking is measured against: gradients by hand against autograd, and what each baseline does to a small bottleneck."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.evaluation.baselines import BASELINES, fine_tune, neggrad, random_labels, scrub
from surgery.unlearning.evaluation.comparison import run_baseline
from surgery.unlearning.evaluation.student import Student, distil
from surgery.unlearning.values import Sgd

CPU, NONE = torch.device("cpu"), np.empty(0, np.int64)
FORGET = np.array([3])
ALL = {baseline.name: baseline for baseline in BASELINES}
# As the report's readers are told, not as the code has it.
BETA, KEEP, LEAVE = 0.87, 0.5, 3


@pytest.fixture(scope="module")
def digits():
    """Training and test rows, 1,000 and 797."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].astype(np.float32), y[order]
    return x[:1000], y[:1000], x[1000:], y[1000:]


@pytest.fixture(scope="module", params=["sgd", "counts"])
def fitted(request, digits):
    """A bottleneck by SGD, and one by counts."""
    return Bottleneck.fit_features(*digits[:2], codebooks=32, keys=128, key_dim=14, values=request.param, device="cpu")


@pytest.fixture(scope="module")
def blobs():
    """Four classes, 60 rows each, well apart; 8 keys a codebook."""
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 60)
    x = (np.eye(4)[y] * 8 + random.normal(size=(240, 4))).astype(np.float32)
    return Bottleneck.fit_features(x, y, codebooks=8, keys=8, key_dim=3, sgd=Sgd(batch=32), device="cpu")


def rows_of(bottleneck, *classes):
    return np.flatnonzero(np.isin(bottleneck.training.targets, classes))


def accuracies(bottleneck, x, y, forget=FORGET):
    right, gone = bottleneck.predict(x, device="cpu") == y, np.isin(y, forget)
    return right[gone].mean(), right[~gone].mean()


def gradient(loss, logits):
    """Minus the gradient of loss(logits), by autograd in float64."""
    given = logits.double().requires_grad_()
    loss(given).backward()
    return -given.grad


def test_distilling_goes_down_the_divergence_from_the_teacher_and_at_a_negative_rate_up():
    torch.manual_seed(0)
    teacher, logits, rows = torch.randn(9, 5) * 3, torch.randn(4, 5) * 3, torch.tensor([7, 0, 7, 3])

    def divergence(given):
        return F.kl_div(given.log_softmax(1), teacher[rows].double().softmax(1), reduction="sum")

    found = distil(teacher.softmax(1), 0.3)(rows, logits)
    torch.testing.assert_close(found, 0.3 * gradient(divergence, logits).float())
    torch.testing.assert_close(distil(teacher.softmax(1), -0.3)(rows, logits), -found)
    assert not distil(teacher.softmax(1), 0.3)(rows, teacher[rows]).any()


@pytest.fixture
def pushes(blobs, monkeypatch):
    """`pushes(lesson)`: (rows, what was pushed at fixed logits) of every step of a lesson on blobs."""

    def get(lesson, forget):
        student = Student(blobs, forget, NONE, 0, CPU)
        logits, seen = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) * 2, []

        def step(ids, rows, push):
            seen.append((rows, logits[: len(rows)], push(rows, logits[: len(rows)])))

        monkeypatch.setattr(student._table, "step", step)
        lesson(student)
        return seen

    return get


def smoothed(targets):
    return lambda given: F.cross_entropy(given, targets, reduction="sum", label_smoothing=0.1)


def test_neggrad_goes_down_for_retained_and_up_for_as_many_forget_rows(blobs, pushes):
    forget, targets = rows_of(blobs, 1), torch.from_numpy(blobs.training.targets)
    steps = pushes(neggrad, forget)
    assert len(steps) == 6  # 180 retained rows by 32
    for rows, logits, pushed in steps:
        gone = targets[rows] == 1
        assert gone.sum() * 2 == len(rows)
        down = gradient(smoothed(targets[rows]), logits).float()
        up = -gradient(lambda given, rows=rows: F.cross_entropy(given, targets[rows], reduction="sum"), logits).float()
        wanted = 0.3 * torch.where(gone[:, None], (1 - BETA) * up, BETA * down)
        torch.testing.assert_close(pushed, wanted)
    retained = torch.cat([rows for rows, *_ in steps])
    assert sorted(retained[targets[retained] != 1].tolist()) == np.flatnonzero(targets != 1).tolist()


def test_scrub_leaves_the_teacher_on_forget_rows_then_keeps_it_and_the_labels_on_retained_ones(blobs, pushes):
    forget, targets = rows_of(blobs, 1), torch.from_numpy(blobs.training.targets)
    teacher = torch.from_numpy(blobs.answer_ids(blobs.training.ids, device="cpu").logits).double().softmax(1)
    steps = pushes(scrub, forget)
    assert len(steps) == LEAVE + 6
    for number, (rows, logits, pushed) in enumerate(steps):

        def divergence(given, rows=rows):
            return F.kl_div(given.log_softmax(1), teacher[rows], reduction="sum")

        away = number < LEAVE
        assert ((targets[rows] == 1) == away).all()
        if away:
            wanted = -gradient(divergence, logits)
        else:
            wanted = gradient(smoothed(targets[rows]), logits) + KEEP * gradient(divergence, logits)
        torch.testing.assert_close(pushed, 0.3 * wanted.float())


@pytest.mark.parametrize(("lesson", "rows_asked"), [(fine_tune, 180), (random_labels, 240)])
def test_the_others_go_down_the_published_objective(blobs, pushes, lesson, rows_asked):
    targets = torch.from_numpy(blobs.training.targets)
    steps = pushes(lesson, rows_of(blobs, 1))
    assert len({int(row) for rows, *_ in steps for row in rows}) == sum(len(rows) for rows, *_ in steps) == rows_asked
    drawn = set()
    for rows, logits, pushed in steps:
        by_class = [0.3 * gradient(smoothed(torch.full_like(rows, label)), logits).float() for label in range(4)]
        for row, found in enumerate(pushed):
            labels = {label for label in range(4) if torch.allclose(found, by_class[label][row], atol=1e-6)}
            assert len(labels) == 1
            if targets[rows[row]] == 1:
                drawn |= labels
            else:
                assert labels == {int(targets[rows[row]])}
    assert drawn == ({0, 2, 3} if rows_asked == 240 else set())


def test_random_labels_of_single_rows_are_other_classes_than_theirs(blobs):
    student = Student(blobs, np.arange(0, 240, 7), NONE, 0, CPU)
    changed = student.disguised != blobs.training.targets
    np.testing.assert_array_equal(np.flatnonzero(changed), np.arange(0, 240, 7))
    assert set(student.disguised[changed]) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", ALL)
def test_baselines_forget_and_keep_the_rest(fitted, digits, name):
    after = run_baseline(ALL[name], fitted, rows_of(fitted, 3), FORGET, 0, CPU)
    refitted = fitted.refitted(np.flatnonzero(fitted.training.targets != 3), device=CPU)
    forgotten, kept = accuracies(after, *digits[2:])
    assert kept > accuracies(refitted, *digits[2:])[1] - 0.02
    if name == "fine-tune":
        assert forgotten <= accuracies(fitted, *digits[2:])[0]
    else:
        assert forgotten < 0.02


@pytest.mark.parametrize("name", ALL)
def test_only_values_change_and_the_seed_decides_how(fitted, name, tmp_path):
    before = fitted.entries.copy()
    positions = rows_of(fitted, 3)
    one, again, other = (run_baseline(ALL[name], fitted, positions, FORGET, seed, CPU) for seed in (0, 0, 1))
    np.testing.assert_array_equal(fitted.entries, before)
    np.testing.assert_array_equal(one.entries, again.entries)
    assert (one.entries != other.entries).any() == (name != "logit masking")
    assert np.isfinite(one.entries).all() and (one.entries != fitted.values).any()
    assert one.selector is fitted.selector and one.training is fitted.training and not one.counted
    one.check()
    np.testing.assert_array_equal(Bottleneck.load(one.save(tmp_path / "one")).values, one.values)


def test_several_classes_are_forgotten_together(fitted, digits):
    for name in ALL.keys() - {"fine-tune"}:
        after = run_baseline(ALL[name], fitted, rows_of(fitted, 2, 5), np.array([2, 5]), 0, CPU)
        forgotten, kept = accuracies(after, *digits[2:], forget=[2, 5])
        assert forgotten < 0.02 and kept > 0.93, name


def test_closed_keys_stay_closed_and_their_values_as_they_are(blobs):
    shut = np.array([0, 5, 17])
    masked = blobs.masked(shut, "next")
    for name in ALL.keys() - {"logit masking"}:
        after = run_baseline(ALL[name], masked, rows_of(blobs, 2), np.array([2]), 0, CPU)
        assert after.selector is masked.selector
        np.testing.assert_array_equal(after.values.reshape(64, 4)[shut], masked.values.reshape(64, 4)[shut])


def test_masked_logits_never_win_and_other_classes_are_as_they_were(fitted, digits):
    after = run_baseline(ALL["logit masking"], fitted, rows_of(fitted, 3), FORGET, 0, CPU)
    logits, old = after.answer(digits[2], device="cpu").logits, fitted.answer(digits[2], device="cpu").logits
    assert np.ptp(logits[:, 3]) < 1e-4 and (logits[:, 3] < old.min() - 1).all()
    np.testing.assert_array_equal(np.delete(logits, 3, 1), np.delete(old, 3, 1))


def test_single_rows(digits):
    x, y, *_ = digits
    noisy = y.copy()
    noisy[:40] = (noisy[:40] + 1) % 10  # rows that only those who saw them answer so
    fitted = Bottleneck.fit_features(x, noisy, codebooks=32, keys=256, key_dim=14, device="cpu")
    positions = np.arange(40)

    def right(bottleneck):
        return int((bottleneck.answer_ids(fitted.training.ids[positions]).targets == noisy[positions]).sum())

    refitted = right(fitted.refitted(np.arange(40, 1000), device=CPU))
    assert right(fitted) > refitted + 5
    for name in ("NegGrad+", "SCRUB"):
        after = run_baseline(ALL[name], fitted, positions, NONE, 0, CPU)
        assert right(after) <= refitted + 1
        assert (after.predict(digits[2], device="cpu") == digits[3]).mean() > 0.9
    assert run_baseline(ALL["logit masking"], fitted, positions, NONE, 0, CPU) is None


@pytest.fixture
def scripted(blobs, monkeypatch):
    """`scripted(name, rights)`: how a baseline's values differ when each epoch adds 1, and leaves so many answered right."""

    def get(name, rights):
        epochs = []

        def lesson(student):
            student._table._rows += 1
            epochs.append(student)

        monkeypatch.setattr(Student, "right", property(lambda student: rights[min(len(epochs), len(rights)) - 1]))
        after = run_baseline(replace(ALL[name], lesson=lesson), blobs, rows_of(blobs, 0), np.array([0]), 0, CPU)
        return len(epochs), (after.values - blobs.values).round(3).max()

    return get


def test_the_unbounded_ones_stop_at_enough_and_else_rewind_to_the_best(scripted):
    for name in ("NegGrad+", "SCRUB"):
        assert scripted(name, [60, 9, 0, 0]) == (3, 3)
        assert scripted(name, [60, 9, 4, 7, 4]) == (50, 3)
    assert scripted("fine-tune", [0]) == (10, 10)


def test_enough_is_one_forget_row_in_200_of_classes_and_what_refitting_leaves_of_single_rows(blobs, monkeypatch):
    asked = []
    monkeypatch.setattr(Student, "learn_until", lambda student, lesson, enough, most: asked.append((enough, most)))
    everything = np.arange(240)
    for positions, classes in ((everything[:199], [0]), (everything[:200], [0]), (everything[:239], [0, 1])):
        run_baseline(ALL["SCRUB"], blobs, positions, np.array(classes), 0, CPU)
    assert asked == [(0, 50), (1, 50), (1, 50)]  # 10 epochs in the recipe
    rows = np.arange(0, 240, 3)
    refitted = blobs.refitted(np.setdiff1d(everything, rows), device=CPU)
    right = (refitted.answer_ids(blobs.training.ids[rows], device="cpu").targets == blobs.training.targets[rows]).sum()
    run_baseline(ALL["NegGrad+"], blobs, rows, NONE, 0, CPU)
    assert asked[-1] == (right, 50) and right > 0
