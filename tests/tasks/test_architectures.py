"""Every architecture that a readout may fit, tiny and random: scored, tuned, grafted, applied, reverted, or refused in a sentence."""

import inspect
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

from surgery import Recipe, Task, graft, score, tune
from surgery.errors import SurgeryError
from surgery.tasks.examples import Example
from tests.support import architectures, tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own, at sizes nobody else builds

ROWS = [
    Example("the film was boring and the acting was awful", "", "negative"),
    Example("we loved it", "", "positive"),
    Example("good food", "", "positive"),
    Example("a story that made us feel bad about the place and the people in it, really", "", "negative"),
]


def plain_scores(folder, kind, base=None):
    """Label scores by the library alone, one text at a time, nothing padded; an encoder's phrases are the base's."""
    name = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    model = getattr(transformers, name).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    taken = inspect.signature(model.forward).parameters
    words = tokenizer.convert_tokens_to_ids(["terrible", "great"])

    def run(text):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            return inputs["input_ids"][0].tolist(), model(**{key: inputs[key] for key in inputs if key in taken})

    def embed(text):
        return run(text)[1].last_hidden_state[0].mean(0)

    def anchors(folder):
        own = getattr(transformers, name).from_pretrained(folder).eval()
        with torch.no_grad():
            return [
                own(**{key: value for key, value in tokenizer(text, return_tensors="pt").items() if key in taken})
                .last_hidden_state[0]
                .mean(0)
                for text in ("It was terrible.", "It was great.")
            ]

    found = []
    for row in ROWS:
        if kind == "masked":
            ids, output = run(f"{row.text} It was {tokenizer.mask_token}.")
            found.append(output.logits[0, ids.index(tokenizer.mask_token_id), words])
        elif kind == "causal":
            found.append(run(f"{row.text} It was")[1].logits[0, -1, words])
        elif kind == "classifier":
            found.append(run(row.text)[1].logits[0])
        else:
            phrases = anchors(base or folder)
            found.append(torch.stack([20 * F.cosine_similarity(embed(row.text), phrase, dim=0) for phrase in phrases]))
    return torch.stack(found).numpy()


def moved(folder, target):
    """A copy with some weights of every numbered stack changed."""

    def move(name, tensor):
        if re.search(r"\.\d+\.", name) and tensor.is_floating_point():
            tensor.view(-1)[::17] += 0.25
            return tensor
        return None

    return tiny.change(folder, target, move)


def check(kind, class_name, folder):
    """The whole way of one architecture: "" if it is accepted, else the sentence that refuses it.

    Scores must be the library's to 1e-4, and bits what a graft is by definition. Skipped are those that the library
    itself can't make so small, or can't run on text.
    """
    try:
        base = architectures.build(class_name, folder / "base", kind)
        wanted = plain_scores(base, kind)
    except Exception as error:
        pytest.skip(f"not made: {type(error).__name__} {str(error)[:200]}")
    task = Task.load("sst2", train=ROWS, test=ROWS)
    after = moved(base, folder / "moved")
    try:
        np.testing.assert_allclose(score(base, task, device="cpu").logits, wanted, atol=1e-4, rtol=1e-4)
        tune(base, task, Recipe("sgd", steps=2, rate=0.01), device="cpu").save(folder / "tuned")
        skill = graft(base, after, task, weights=9, method="movement", device="cpu")
        skill.save(folder / "skill", figures=False)
        skill.apply(base, folder / "grafted")
        skill.revert(folder / "grafted", folder / "again")
    except SurgeryError as error:
        return str(error)
    np.testing.assert_allclose(
        score(folder / "tuned", task, device="cpu").logits,
        plain_scores(folder / "tuned", kind, base),
        atol=1e-4,
        rtol=1e-4,
    )
    before, target, grafted, again = (tiny.weights(folder / name) for name in ("base", "moved", "grafted", "again"))
    changed = 0
    for name in before:
        assert (tiny.raw(again[name]) == tiny.raw(before[name])).all()
        places = tiny.raw(grafted[name]) != tiny.raw(before[name])
        assert (tiny.raw(grafted[name])[places] == tiny.raw(target[name])[places]).all()
        changed += places.sum()
    assert changed == 9
    return ""


def verdict(kind, class_name, folder):
    refused = check(kind, class_name, folder)
    assert "\n" not in refused and len(refused) < 500
    return refused


# Of every kind, and of every way to be odd: shared blocks, relative positions, convolutions, pooling, Fourier transforms,
# states in place of attention, no positions, embeddings of another width, a head that isn't called.
SAMPLE = {
    "masked": [
        "albert",
        "convbert",
        "deberta-v2",
        "distilbert",
        "fnet",
        "funnel",
        "mobilebert",
        "modernbert",
        "mpnet",
        "xlm",
    ],
    "causal": ["bart", "bloom", "gpt_neox", "gptj", "mamba", "qwen3"],
    "classifier": ["electra", "gpt2", "xlnet"],
    "encoder": ["roberta"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in SAMPLE.items() for name in names])
def test_a_sample_is_accepted(tmp_path, kind, name):
    assert verdict(kind, architectures.classes(kind)[name], tmp_path) == ""


@pytest.mark.parametrize(
    ("kind", "name", "sentence"),
    [
        ("masked", "bart", "no readout fits"),
        ("causal", "xlnet", "no readout fits"),
        ("masked", "reformer", "gives no gradients"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, kind, name, sentence):
    assert sentence in verdict(kind, architectures.classes(kind)[name], tmp_path)


@pytest.mark.architectures
@pytest.mark.parametrize(
    ("kind", "class_name"),
    [
        (kind, class_name)
        for kind in architectures.TABLES
        for name, class_name in architectures.classes(kind).items()
        if kind != "encoder" or name in architectures.TABLES["masked"]
    ],
)
def test_every_architecture_is_accepted_or_refused_in_a_sentence(tmp_path, kind, class_name, record_property):
    record_property("refused", verdict(kind, class_name, tmp_path))
