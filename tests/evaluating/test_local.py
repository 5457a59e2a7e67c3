"""Weights on a device: log-likelihoods and answers against plain loops, batches, seeds, templates and identity."""

import json
import shutil

import pytest
import torch

from surgery.errors import EvaluationError
from surgery.evaluating.calls import Answer, Call, Log, Message
from surgery.evaluating.local import LocalModel
from surgery.evaluating.runner import Runner
from tests.support.tiny import change, perturb

TEXTS = ["the film was good", "it was bad", "a story", "they saw the book and the film", "the man"]


@pytest.fixture(scope="module")
def llama(tiny):
    return LocalModel(tiny("llama"), device="cpu", batch_size=3)


def plain(model, prompt, more):
    """Log-likelihood token by token, without batches, padding or caches."""
    ids = model.tokenizer(prompt)["input_ids"]
    total = 0.0
    for token in model.tokenizer(more, add_special_tokens=False)["input_ids"]:
        with torch.no_grad():
            logits = model.model.module(input_ids=torch.tensor([ids])).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
        ids = [*ids, token]
    return total


def score(model, pairs):
    calls = [Call.of(prompt, continuation=more) for prompt, more in pairs]
    return [answer.log_likelihood for answer in Runner().ask(model, calls)]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_log_likelihoods_are_those_of_a_plain_loop(tiny, kind):
    model = LocalModel(tiny(kind), device="cpu")
    alone = list(zip(TEXTS, reversed(TEXTS), strict=True))
    shared = [(f"{prompt} {prompt} {prompt}", more) for prompt in TEXTS[:3] for more in TEXTS]
    wanted = [plain(model, f"{prompt}\n\n", more) for prompt, more in [*alone, *shared]]
    assert score(model, alone) == pytest.approx(wanted[:5], abs=1e-4)
    assert score(model, shared) == pytest.approx(wanted[5:], abs=1e-4)
    assert score(model, [*alone, *shared]) == pytest.approx(wanted, abs=1e-4)


def test_an_empty_continuation_is_certain_and_padding_that_matters_is_avoided(tiny, monkeypatch):
    model = LocalModel(tiny("llama"), device="cpu")
    assert score(model, [("a film", ""), ("a film", "")]) == [0.0, 0.0]
    pairs = [(prompt, more) for prompt in TEXTS for more in TEXTS]
    wanted, seen = score(model, pairs), []
    monkeypatch.setitem(vars(model.model), "padding_matters", True)
    run = type(model)._score
    monkeypatch.setattr(
        type(model), "_score", lambda self, rows: seen.append({sum(map(len, row)) for row in rows}) or run(self, rows)
    )
    assert score(model, pairs) == pytest.approx(wanted, abs=1e-4)
    assert seen and all(len(lengths) == 1 for lengths in seen)


def write(model, **options):
    calls = [Call.of(text, max_tokens=6, **options) for text in TEXTS]
    return Runner().ask(model, calls)


def greedy(model, prompt, most):
    ids = model.tokenizer(prompt)["input_ids"]
    made = []
    for _ in range(most):
        with torch.no_grad():
            token = int(model.model.module(input_ids=torch.tensor([ids + made])).logits[0, -1].argmax())
        made.append(token)
        if token in model._ends:
            made = made[:-1]
            break
    return model.tokenizer.decode(made, skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_answers_are_those_of_a_plain_loop_whatever_the_folder_says_of_sampling(tiny, copied, kind):
    folder = copied(kind)
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 9.0, "repetition_penalty": 5.0})
    )
    model = LocalModel(folder, device="cpu", batch_size=3)
    assert [answer.text for answer in write(model)] == [greedy(model, f"{text}\n\n", 6) for text in TEXTS]
    assert {answer.tokens for answer in write(model)} <= set(range(1, 7))


def test_draws_depend_on_their_own_seed_alone(llama, tiny):
    together = [answer.text for answer in write(llama, temperature=1.0, seed=5)]
    other = LocalModel(tiny("llama"), device="cpu", batch_size=1)
    assert [answer.text for answer in write(other, temperature=1.0, seed=5)] == together
    assert [answer.text for answer in write(llama, temperature=1.0, seed=6)] != together


def test_draws_follow_the_softmax():
    from surgery.evaluating.local import SeededDraws

    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    drawn = [
        int(SeededDraws([Call.of("a", temperature=2.0, seed=seed)])(torch.empty(1, 0), logits).argmax())
        for seed in range(3000)
    ]
    shares = torch.bincount(torch.tensor(drawn), minlength=4) / 3000
    assert torch.allclose(shares, (logits[0] / 2).softmax(-1), atol=0.03)


def test_one_changed_weight_another_tokenizer_or_dtype_is_another_model(tiny, tmp_path):
    log = Log(tmp_path / "log")
    folder = tiny("llama")
    first = Runner(log).ask(LocalModel(folder, device="cpu"), [Call.of("a film", max_tokens=2)])
    again = Runner(log)
    assert (
        again.ask(
            LocalModel(shutil.copytree(folder, tmp_path / "copy"), device="cpu"), [Call.of("a film", max_tokens=2)]
        )
        == first
    )
    assert again.usage[str(tmp_path / "copy")].known == 1
    perturb(folder, tmp_path / "one", count=1)
    change(folder, tmp_path / "norm", lambda name, tensor: tensor * 1.0001 if name == "model.norm.weight" else None)
    shutil.copytree(folder, tmp_path / "words")
    (tmp_path / "words" / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text() + " ")
    others = [LocalModel(tmp_path / name, device="cpu") for name in ("one", "norm", "words")]
    for other in [*others, LocalModel(folder, device="cpu", dtype="bfloat16")]:
        runner = Runner(log)
        runner.ask(other, [Call.of("a film", max_tokens=2)])
        assert runner.usage[other.name].known == 0


def test_a_chat_template_is_used_where_there_is_one_and_its_lack_is_said(llama, copied):
    assert llama.prompt((Message("user", "hi"),)) == "hi\n\n"
    turns = (Message("user", "hi"), Message("assistant", "yes"), Message("user", "so"))
    assert llama.prompt(turns) == "User: hi\n\nAssistant: yes\n\nUser: so\n\nAssistant:"
    assert "has no chat template, so prompts are plain text" in llama.remarks[0]
    folder = copied("llama")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[say]{% endif %}"
    )
    chatting = LocalModel(folder, device="cpu")
    assert chatting.prompt(turns) == "[user]hi[assistant]yes[user]so[say]" and chatting.remarks == ()
    assert chatting.identity != llama.identity
    assert "is put to plain text" in LocalModel(folder, device="cpu", chat=False).remarks[0]
    with pytest.raises(EvaluationError, match="has no chat template: leave out `chat`"):
        LocalModel(llama.checkpoint, device="cpu", chat=True)


def test_what_is_longer_than_the_context_is_missing(llama):
    long = "film " * (llama.context or 0)
    runner = Runner()
    answers = runner.ask(llama, [Call.of(long), Call.of(long, continuation="a"), Call.of("a", max_tokens=2)])
    assert [answer.missing for answer in answers] == [True, True, False]
    assert answers[0].error == "question and answer together are longer than the model's context"


def test_other_kinds_of_model_are_refused(tiny):
    with pytest.raises(EvaluationError, match="is no causal language model"):
        LocalModel(tiny("bert"), device="cpu")


@pytest.mark.cuda
def test_a_card_gives_what_the_cpu_gives(tiny):
    here, there = (LocalModel(tiny("llama"), device=device) for device in ("cpu", "cuda"))
    pairs = [(prompt, more) for prompt in TEXTS for more in TEXTS]
    assert score(there, pairs) == pytest.approx(score(here, pairs), abs=1e-3)
    assert [a.text for a in write(there, temperature=1.0, seed=1)] == [
        a.text for a in write(here, temperature=1.0, seed=1)
    ]
    assert isinstance(write(there)[0], Answer)
