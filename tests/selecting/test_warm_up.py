"""A warm-up is a plain loop of Adam's; what scores take from its checkpoints: steps, rates, the target's plain gradients."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from surgery.errors import OptionError
from surgery.selecting import Features, Warmup
from surgery.selecting import shards as stores
from surgery.selecting.capture import gradients, stacked
from surgery.selecting.collecting import open_instrument
from surgery.selecting.lora import Adapter
from surgery.selecting.maps import GradientMap
from surgery.selecting.scoring import Target, best, mean_feature, nearest, score_rows
from surgery.selecting.sketch import CountSketch
from surgery.selecting.warmup import warm_up
from surgery.tasks.rows import read_rows
from tests.selecting.conftest import encoded, opened, raw_rows

SMALL = {"warmup": Warmup(share=0.5, epochs=2, rank=2, batch_size=4), "shard_rows": 8, "batch_size": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def features(tiny, tmp_path_factory):
    """Corrected and plain gradients of 21 rows, of which two are also a target's."""
    options = {**SMALL, "sketch": 0, "maps": ("adam-corrected", "adam", "sgd")}
    return Features.collect(
        tiny("gpt2"), list(raw_rows(21)), folder=tmp_path_factory.mktemp("w") / "features", **options
    )


@pytest.fixture(scope="module")
def instrument(features, tiny):
    return open_instrument(features.store.folder, tiny("gpt2"), features.store.header, device="cpu")


@pytest.mark.parametrize("size", [1, 4])
def test_a_warm_up_is_a_plain_loop(size, tiny, tmp_path):
    """Means over a batch's rows, clipped at a norm of 1, at a rate that rises over 3% of the steps and then falls to zero."""
    asked = Warmup(epochs=2, rate=0.02, rank=2, alpha=100.0, batch_size=size, seed=3)
    model, objective = opened(tiny("llama"))
    found = warm_up(model, objective, encoded(objective, 18), asked, tmp_path)
    made = found.adapter(opened(tiny("llama"))[0])

    model, objective = opened(tiny("llama"))
    rows, adapter = encoded(objective, 18), Adapter.beside(model, 2, 100.0, (), 3)
    weights = list(adapter.weights.values())
    for weight in weights:
        weight.requires_grad_(True)
    adam, total, norms = torch.optim.Adam(weights, lr=1.0, betas=(0.9, 0.999), eps=1e-8), 2 * math.ceil(18 / size), []
    rising, step = math.ceil(0.03 * total), 0
    assert rising == {1: 2, 4: 1}[size]
    for epoch in range(2):
        order, rates, losses = np.random.default_rng([3, epoch]).permutation(18), [], []
        for first in range(0, 18, size):
            some = [rows[number] for number in order[first : first + size]]
            loss = sum(objective.losses(model, [row])[0] for row in some) / len(some)
            adam.zero_grad()
            loss.backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(weights, 1.0)))
            rates.append(0.02 * ((step + 1) / rising if step + 1 <= rising else (total - step) / (total - rising + 1)))
            adam.param_groups[0]["lr"] = rates[-1]
            adam.step()
            losses.append(float(loss.detach()))
            step += 1
        moments = made.load(found.place(epoch))
        assert (found.steps[epoch], found.rates[epoch]) == (step, pytest.approx(np.mean(rates)))
        assert found.losses[epoch] == pytest.approx(np.mean(losses), rel=1e-3)
        for name, weight in adapter.weights.items():
            assert torch.allclose(made.weights[name], weight, atol=2e-4), name
            assert torch.allclose(moments[name]["exp_avg"], adam.state[weight]["exp_avg"], atol=1e-4), name
    assert max(norms) > 1.5  # or clipping would change nothing


def test_corrections_are_of_each_checkpoints_own_steps(features, instrument):
    store = features.store
    lessons = [instrument.objective.encode(row) for row in read_rows(list(raw_rows(21)))]
    assert store.checkpoints.steps == (3, 6)
    for at, steps in enumerate((3, 6)):
        change = GradientMap("adam-corrected", instrument.adapter.load(store.checkpoints.place(at)), steps)
        each = stacked(instrument.model, instrument.objective, lessons, instrument.adapter.layers)
        wanted = torch.cat([change(name, gradient) for name, gradient in each.items()], 1)
        found = instrument.features(lessons, at, ("adam-corrected",))["adam-corrected"]
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4)
        kept = torch.cat([chunk for _, chunk in store.chunks(f"adam-corrected.{at}")])
        assert torch.nn.functional.cosine_similarity(kept, wanted).min() > 0.99999


def test_a_targets_gradients_are_plain_ones(features, instrument):
    rows = read_rows(list(raw_rows(4, seed=7)))
    target = Target.of(instrument, rows, hidden=False)
    lessons = [instrument.objective.encode(row) for row in rows]
    for at in range(2):
        instrument.adapter.load(features.store.checkpoints.place(at))
        each = stacked(instrument.model, instrument.objective, lessons, instrument.adapter.layers)
        assert torch.allclose(target.gradients[at], normalize(torch.cat(list(each.values()), 1), dim=1), atol=1e-5)


def test_the_nearest_of_a_target_is_weighed_by_the_checkpoints_rates(features, instrument):
    store, rows = features.store, read_rows(list(raw_rows(4, seed=7)))
    target = Target.of(instrument, rows, hidden=False)
    cosines = sum(
        weight
        * torch.cat([chunk for _, chunk in store.chunks(f"adam.{at}")]).double()
        @ target.gradients[at].T.double()
        for at, weight in enumerate(store.checkpoints.weights)
    )
    for number, (place, cosine) in enumerate(nearest(store, target, "less", range(21))):
        assert cosine == pytest.approx(float(cosines[number].max()), abs=1e-5)
        assert place == int(cosines[number].argmax())


def test_a_mean_is_over_the_rows_that_have_a_gradient(tmp_path):
    kept = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 0.0], [0.0, 0.0]])

    class Kept(stores.Store):
        """Features in memory."""

        def chunks(self, name):
            yield from ((slice(0, 3), kept[:3]), (slice(3, 4), kept[3:]))

    assert mean_feature(Kept(tmp_path, {}), "sgd.0").tolist() == [2.0, 1.0]


def test_a_shards_rows_are_read_a_few_at_a_time(features, monkeypatch):
    whole = torch.cat([chunk for _, chunk in features.store.chunks("sgd.1")])
    monkeypatch.setattr(stores, "_CHUNK", 3)
    places, chunks = zip(*features.store.chunks("sgd.1"), strict=True)
    assert [place.stop - place.start for place in places] == [3, 3, 2, 3, 3, 2, 3, 2]
    assert torch.equal(torch.cat(chunks), whole) and len(whole.unique(dim=0)) > 10


def test_baselines_choose_among_the_rows_that_are_left(features):
    """Rows of the target would be TF-IDF's first choice; they are left out of what it is said to choose."""
    target = list(raw_rows(21))[:4]
    found = features.select(target, share=0.25, by="less", device="cpu")
    left_out, rows = np.arange(21) < 4, read_rows(target)
    for name in ("tfidf", "bm25", "length"):
        chosen = best(score_rows(features.store, rows, name), len(found.numbers), left_out)
        assert found.overlap[name] == len(set(chosen.tolist()) & set(found.numbers)) / len(found.numbers)
        assert not left_out[chosen].any()


@pytest.mark.parametrize("other", [{"warmup": Warmup(share=0.5, epochs=1, rank=2, batch_size=4)}, {"rows": 20}])
def test_another_pool_or_warm_up_isnt_taken_for_the_same(other, features, tiny):
    options = {
        **SMALL,
        "sketch": 0,
        "maps": ("adam-corrected", "adam", "sgd"),
        "folder": features.store.folder,
        **other,
    }
    with pytest.raises(OptionError, match="holds features of another pool, base or options"):
        Features.collect(tiny("gpt2"), list(raw_rows(options.pop("rows", 21))), **options)


def test_a_warm_up_that_is_taken_over_is_known_by_its_weights(features, tiny, tmp_path):
    """Of equal settings, trained on another pool."""
    shared = {**SMALL, "sketch": 16}
    other = Features.collect(tiny("gpt2"), list(raw_rows(21, seed=5)), folder=tmp_path / "other", **shared)
    given = {**shared, "folder": tmp_path / "taken"}
    Features.collect(tiny("gpt2"), list(raw_rows(9)), **{**given, "warmup": features.store.folder / "warmup"})
    with pytest.raises(OptionError, match="holds features of another pool, base or options"):
        Features.collect(tiny("gpt2"), list(raw_rows(9)), **{**given, "warmup": other.store.folder / "warmup"})


def test_all_of_a_seeds_bits_count():
    made = [CountSketch({"a": 200}, 64, seed).slots("a") for seed in (1, 1 + 2**32, 2)]
    assert not torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_a_layer_that_no_gradient_reaches_has_zeros(tiny):
    model, objective = opened(tiny("gpt2"))
    adapter, rows = Adapter.beside(model, 2, 4.0), encoded(objective, 3)

    def cut(module, given, output):
        return output.detach() if isinstance(output, torch.Tensor) else (output[0].detach(), *output[1:])

    first = model.module.transformer.h[0].register_forward_hook(cut)  # what comes before has no part in the loss
    found = {}
    for _ in gradients(model, objective, rows, adapter.layers, 4, lambda numbers: found.__setitem__):
        pass
    first.remove()
    assert set(found) == set(adapter.layers)
    assert not any(each.any() for name, each in found.items() if ".h.0." in name)
    assert any(each.any() for name, each in found.items() if ".h.1." in name)


def test_a_masked_model_doesnt_see_the_answer(tiny):
    _, objective = opened(tiny("bert"))
    for lesson in encoded(objective, 4):
        asked = [token for token, target in zip(lesson.tokens.ids, lesson.targets, strict=True) if target != -100]
        assert asked and set(asked) == {objective.tokenizer.mask_token_id}


def test_a_sentence_encoder_reads_both_texts(tiny):
    _, objective = opened(tiny("bert-encoder"))
    alone, pair = read_rows(
        [{"text": "it was good", "text_pair": other, "label": "positive"} for other in ("", "it was bad")]
    )
    alone, pair = (objective.encode(row).tokens.ids for row in (alone, pair))
    assert len(pair) > len(alone) + 2
