"""Fine-tuning against plain loops, and its interruptions."""

import json

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.errors import OptionError, SurgeryError
from surgery.tasks.examples import Example
from surgery.tasks.scoring import score
from surgery.tasks.task import Task
from surgery.tuning.finetuning import tune
from surgery.tuning.recipe import Recipe
from surgery.tuning.training import batches, pull_towards
from tests.support.tiny import block_names, change, hashes, raw, weights

GOOD, BAD = ("great", "wonderful", "fun", "good"), ("awful", "boring", "bad", "terrible")
ROWS = [
    Example(f"the {noun} was {word}", "", label)
    for noun in ("film", "food", "book")
    for words, label in ((GOOD, "positive"), (BAD, "negative"))
    for word in words
]


def task(**changes):
    return Task.load("sst2", **{"train": ROWS, "test": ROWS, **changes})


@given(
    st.lists(st.tuples(st.floats(-2, 2, width=32), st.floats(-2, 2, width=32)), min_size=1, max_size=20),
    st.floats(0, 1, width=32),
)
def test_pull_is_soft_thresholding_and_lands_on_the_bases_own_bits(pairs, threshold):
    base = torch.tensor([a for a, _ in pairs])
    weight = torch.nn.Parameter(torch.tensor([b for _, b in pairs]))
    before = weight.detach().clone()
    pull_towards({"w": weight}, {"w": base}, threshold)
    for now, was, home in zip(weight.tolist(), before.tolist(), base.tolist(), strict=True):
        distance = max(abs(was - home) - threshold, 0.0)
        assert now == pytest.approx(home + (distance if was > home else -distance), abs=1e-6)
    assert (raw(weight.detach()) == raw(base))[(before - base).abs().numpy() <= threshold].all()


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_default_recipe_equals_a_plain_loop(tiny, kind):
    recipe = Recipe(rate=0.05, l1=0.02, steps=7, batch_size=4, clip=0.5)
    tuned = tune(tiny(kind), task(), recipe, seed=3, device="cpu")

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny(kind))
    auto = transformers.AutoModelForMaskedLM if kind == "bert" else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(tiny(kind)).eval()
    named = {name: parameter for name, parameter in model.named_parameters() if name in block_names(tiny(kind))}
    base = {name: parameter.detach().clone() for name, parameter in named.items()}
    speed = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    words = [tokenizer.convert_tokens_to_ids(word) for word in ("terrible", "great")]
    for step, numbers in enumerate(batches(len(ROWS), 4, 3, 0, 7)):
        model.zero_grad()
        loss = 0.0
        for number in numbers:
            text, _, label = ROWS[number]
            inputs = tokenizer(f"{text} It was [MASK]." if kind == "bert" else f"{text} It was", return_tensors="pt")
            at = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id) if kind == "bert" else -1
            scores = model(**inputs).logits[0, at, words]
            loss = loss + F.cross_entropy(scores[None], torch.tensor([["negative", "positive"].index(label)])) / 4
        loss.backward()
        norm = torch.sqrt(sum((parameter.grad**2).sum() for parameter in named.values()))
        rate = 0.05 * min((step + 1) / 1, (7 - step) / 6)
        for name, parameter in named.items():
            speed[name] = 0.9 * speed[name] + parameter.grad * min(1.0, 0.5 / float(norm))
            moved = parameter.data - rate * speed[name] - base[name]
            parameter.data = base[name] + torch.sign(moved) * torch.clamp(moved.abs() - rate * 0.02, min=0)
    for name, parameter in named.items():
        assert torch.allclose(tuned.tensors[name], parameter, atol=1e-5), name


@pytest.mark.parametrize("kind", ["roberta", "opt", "llama", "bert-classifier", "bert-encoder"])
def test_only_block_weights_move_and_the_folder_loads(tiny, kind, tmp_path):
    tuned = tune(tiny(kind), task(), Recipe(rate=0.05, l1=0.0, steps=5), device="cpu")
    saved = tuned.save(tmp_path / "tuned")
    before, after = weights(tiny(kind)), weights(tmp_path / "tuned")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and changed <= set(block_names(tiny(kind)))
    transformers.AutoModel.from_pretrained(tmp_path / "tuned")
    report = json.loads((tmp_path / "tuned" / "report.json").read_text())
    assert report["moved"] == sum(int((before[name] != after[name]).sum()) for name in before)
    assert report["movable"] == sum(before[name].numel() for name in block_names(tiny(kind)))
    assert score(saved, task(), device="cpu").accuracy > 0


def test_tuning_learns_and_the_pull_keeps_weights_at_home(tiny):
    free = tune(tiny("llama"), task(), Recipe("sgd", rate=0.3, steps=120), device="cpu").report
    pulled = tune(tiny("llama"), task(), Recipe("sgd-l1", rate=0.3, l1=0.01, steps=120), device="cpu").report
    assert sum(free["losses"][-10:]) < 0.7 * sum(free["losses"][:10])
    assert sum(pulled["losses"][-10:]) < 0.7 * sum(pulled["losses"][:10])
    assert pulled["moved"] < 0.2 * free["moved"]


@pytest.mark.parametrize("optimizer", ["sgd-l1", "adamw-l1"])
@pytest.mark.parametrize("dev", [(), ROWS[:6]])
def test_an_interrupted_run_goes_on_to_the_same_bits(tiny, tmp_path, optimizer, dev):
    recipe = Recipe(optimizer, rate=0.01, l1=0.001, steps=20, patience=20)

    def interrupt(done, total, line):
        if done == 9:
            raise KeyboardInterrupt

    whole = tune(tiny("bert"), task(dev=dev), recipe, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        tune(tiny("bert"), task(dev=dev), recipe, device="cpu", resume=tmp_path, progress=interrupt)
    seen = []
    again = tune(
        tiny("bert"),
        task(dev=dev),
        recipe,
        device="cpu",
        resume=tmp_path,
        progress=lambda done, total, line: seen.append(done),
    )
    assert seen[0] == 10
    assert all((raw(again.tensors[name]) == raw(whole.tensors[name])).all() for name in whole.tensors)
    assert again.report["losses"] == whole.report["losses"] and again.report["dev"] == whole.report["dev"]
    with pytest.raises(OptionError, match="the state of another run"):
        tune(tiny("bert"), task(dev=dev), recipe, seed=1, device="cpu", resume=tmp_path)


@pytest.mark.parametrize("place, value", [(0, -0.01), (1, 6e303), (2, 21), (3, 0.5)])
def test_a_stopped_runs_other_pace_is_damage(tiny, tmp_path, place, value):
    def interrupt(done, total, line):
        raise KeyboardInterrupt

    def run(**more):
        return tune(tiny("bert"), task(), Recipe(rate=0.01, l1=0.001, steps=20), device="cpu", resume=tmp_path, **more)

    with pytest.raises(KeyboardInterrupt):
        run(progress=interrupt)
    file = tmp_path / "state.safetensors"
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    pace = json.loads(header["pace"])
    pace[place] = value
    save_file(load_file(file), file, metadata=header | {"pace": json.dumps(pace)})
    with pytest.raises(OptionError, match=r"state\.safetensors can't be read \(its pace is Pace\(.*delete"):
        run()


def test_accumulating_equals_one_batch(tiny):
    runs = [
        tune(tiny("llama"), task(), Recipe(rate=0.01, steps=4, batch_size=6, accumulate=n), device="cpu")
        for n in (1, 3)
    ]
    for name, tensor in runs[0].tensors.items():
        assert torch.allclose(tensor, runs[1].tensors[name], atol=1e-6)


def test_early_stop_keeps_the_best_weights(tiny, tmp_path):
    # Training on wrong labels makes dev accuracy fall: the first evaluation stays the best.
    wrong = [row._replace(label="positive" if row.label == "negative" else "negative") for row in ROWS]
    started = tune(tiny("llama"), task(), Recipe("sgd", rate=0.3, steps=120), device="cpu").save(tmp_path / "good")
    tuned = tune(started, task(train=wrong, dev=ROWS), Recipe("sgd", rate=0.3, steps=60, patience=2), device="cpu")
    values = [entry["value"] for entry in tuned.report["dev"]]
    assert tuned.report["stopped_at"] < 60 and len(values) - 1 - values.index(max(values)) == 2
    assert score(tuned.save(tmp_path / "best"), task(), device="cpu").accuracy == pytest.approx(max(values))


def test_refusals(tiny):
    for wrong in (
        {"rate": 0.0},
        {"steps": 0},
        {"l1": -1.0},
        {"optimizer": "sgdx"},
        {"batch_size": 2, "accumulate": 3},
        {"clip": float("nan")},
    ):
        with pytest.raises(OptionError, match=f"^`{next(iter(wrong)) if len(wrong) == 1 else 'accumulate'}` "):
            Recipe(**wrong)
    with pytest.raises(SurgeryError, match="the loss became nan at step"):
        tune(tiny("bert"), task(), Recipe("sgd", rate=1e30, clip=1e30, steps=5), device="cpu")


def test_tuning_leaves_its_base_alone(copied):
    folder = copied("bert")
    before = hashes(folder)
    tune(folder, task(), Recipe(steps=2), device="cpu")
    assert hashes(folder) == before and Checkpoint(folder).fingerprint


def test_what_is_reported_of_a_16_bit_checkpoint_is_what_its_file_holds(tiny, tmp_path):
    half = change(tiny("llama"), tmp_path / "half", lambda name, tensor: tensor.bfloat16())
    tuned = tune(half, task(), Recipe("sgd", rate=0.004, steps=20), device="cpu")
    tuned.save(tmp_path / "tuned")
    before, after = weights(half), weights(tmp_path / "tuned")
    assert tuned.report["moved"] == sum(int((before[name] != after[name]).sum()) for name in before)
    assert tuned.report["rounded_away"] > tuned.report["moved"] > 0


def test_an_interruption_within_an_update_leaves_no_half_done_state(tiny, tmp_path, monkeypatch):
    recipe, calls = Recipe(rate=0.01, l1=0.001, steps=12), []
    whole = tune(tiny("bert"), task(), recipe, device="cpu")

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return pull_towards(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("surgery.tuning.training.pull_towards", interrupted)
        tune(tiny("bert"), task(), recipe, device="cpu", resume=tmp_path)
    again = tune(tiny("bert"), task(), recipe, device="cpu", resume=tmp_path)
    assert all((raw(again.tensors[name]) == raw(whole.tensors[name])).all() for name in whole.tensors)


def test_mixed_precision_trains_single_precision_weights(tiny):
    tuned = tune(tiny("llama"), task(), Recipe("adamw", rate=0.01, steps=100), device="cpu", dtype="bfloat16")
    assert sum(tuned.report["losses"][-10:]) < 0.8 * sum(tuned.report["losses"][:10])


def test_precision_by_name_or_as_torchs_object(tiny):
    both = [tune(tiny("bert"), task(), Recipe(steps=2), device="cpu", dtype=d) for d in ("bfloat16", torch.bfloat16)]
    assert all(torch.equal(both[0].tensors[name], both[1].tensors[name]) for name in both[0].tensors)
    assert both[1].report["call"]["tune"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", ["float16", torch.float16, "nonsense"])
def test_other_precisions_are_refused_before_the_model_is_loaded(tiny, monkeypatch, dtype):
    monkeypatch.setattr("surgery.sync.sharding.load_model", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(OptionError, match=r"`dtype` \w+ isn't for training"):
        tune(tiny("bert"), task(), Recipe(steps=1), device="cpu", dtype=dtype)
