"""Readouts against plain runs of the transformers library."""

import json

import pytest
import tokenizers
import torch
import torch.nn.functional as F
import transformers

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.models import load_model
from surgery.checkpoints.pairing import check_alike
from surgery.errors import CheckpointError, OptionError, TaskError
from surgery.grafting.candidates import Candidates, GraftedModel
from surgery.tasks.examples import Example
from surgery.tasks.readout import PhraseReadout, _one_token, alike, collate, pick_readout, readout_file
from surgery.tasks.scoring import predict, score
from surgery.tasks.task import Task
from tests.support import architectures
from tests.support.tiny import build

ROWS = [
    Example("the film was boring and the acting was awful", "", "negative"),
    Example("we loved it", "", "positive"),
    Example("good food", "", "positive"),
]


def task(**changes):
    return Task.load("sst2", train=ROWS, test=ROWS, **changes)


def opened(folder):
    return load_model(Checkpoint(folder), device="cpu")


def logits_of(model, readout, rows=ROWS):
    return torch.from_numpy(predict(model, readout, readout.encode(rows), batch_size=2))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_masked_models_are_read_at_the_mask(tiny, kind):
    model = opened(tiny(kind))
    found = logits_of(model, pick_readout(model, task()))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny(kind))
    plain = transformers.AutoModelForMaskedLM.from_pretrained(tiny(kind)).eval()
    words = [tokenizer.convert_tokens_to_ids(word) for word in ("terrible", "great")]
    for example, row in zip(ROWS, found, strict=True):
        inputs = tokenizer(f"{example.text} It was {tokenizer.mask_token}.", return_tensors="pt")
        at = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
        assert torch.allclose(row, plain(**inputs).logits[0, at, words], atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama", "llama-tied"])
def test_causal_models_are_read_after_the_prompt(tiny, kind):
    model = opened(tiny(kind))
    found = logits_of(model, pick_readout(model, task()))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny(kind))
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny(kind)).eval()
    words = [tokenizer.convert_tokens_to_ids(word) for word in ("terrible", "great")]
    for example, row in zip(ROWS, found, strict=True):
        inputs = tokenizer(f"{example.text} It was", return_tensors="pt", return_token_type_ids=False)
        assert torch.allclose(row, plain(**inputs).logits[0, -1, words], atol=1e-5)


def test_classifiers_are_read_by_their_head_in_the_tasks_order(copied):
    folder = copied("bert-classifier")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    plain.config.id2label, plain.config.label2id = {0: "POSITIVE", 1: "NEGATIVE"}, {"POSITIVE": 0, "NEGATIVE": 1}
    plain.save_pretrained(folder)
    model = opened(folder)
    found = logits_of(model, pick_readout(model, task()))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for example, row in zip(ROWS, found, strict=True):
        assert torch.allclose(row, plain(**tokenizer(example.text, return_tensors="pt")).logits[0].flip(0), atol=1e-5)


def test_a_head_without_names_is_taken_in_order_and_a_wrong_one_refused(tiny, copied):
    model = opened(tiny("bert-classifier"))
    assert pick_readout(model, task()).order == (0, 1)
    with pytest.raises(TaskError, match="the checkpoint's head has 2 labels, task trec has 6"):
        pick_readout(model, Task.load("trec"))
    model.module.config.id2label = {0: "spam", 1: "ham"}
    with pytest.raises(TaskError, match="spam, ham, but not the task's label 'negative'"):
        pick_readout(model, task())


def test_encoders_are_read_by_cosine_with_the_bases_phrases(tiny):
    model = opened(tiny("bert-encoder"))
    found = logits_of(model, pick_readout(model, task()))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny("bert-encoder"))
    plain = transformers.AutoModel.from_pretrained(tiny("bert-encoder")).eval()

    def embed(text):
        return plain(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    for example, row in zip(ROWS, found, strict=True):
        wanted = [
            20 * F.cosine_similarity(embed(example.text), embed(phrase), dim=0)
            for phrase in ("It was terrible.", "It was great.")
        ]
        assert torch.allclose(row, torch.stack(wanted), atol=1e-4)


def test_a_readout_file_beside_the_checkpoint_wins_over_its_own_embeddings(tiny, copied):
    base = pick_readout(opened(tiny("bert-encoder")), task())
    other = build("bert-encoder", copied("bert-encoder").parent / "other", seed=5)
    own = pick_readout(opened(other), task())
    (other / readout_file(task())).write_bytes(base.to_bytes())
    given = pick_readout(opened(other), task())
    assert torch.equal(given.anchors, base.anchors) and not torch.allclose(own.anchors, base.anchors)
    with pytest.raises(TaskError, match="was made for the phrases"):
        pick_readout(opened(other), task(phrases={"positive": "Good."}))
    (other / readout_file(task())).write_bytes(b"nonsense")
    with pytest.raises(TaskError, match="is no readout"):
        pick_readout(opened(other), task())


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_label_words_must_be_one_token_each_and_different(tiny, kind):
    model = opened(tiny(kind))
    with pytest.raises(TaskError, match="'not good' is 2 tokens"):
        pick_readout(model, task(words={"positive": "not good"}))
    # A word outside the vocabulary becomes the unknown token, which tells nothing.
    if kind == "bert":
        with pytest.raises(TaskError, match=r"label word 'stupendous' is 1 tokens .*UNK"):
            pick_readout(model, task(words={"positive": "stupendous"}))


def test_long_texts_are_cut_and_the_prompt_stays(tiny):
    long = Example("the film was boring " * 40, "", "negative")
    for kind, tail in (("bert", " It was [MASK]. [SEP]"), ("gpt2", " It was")):
        model = opened(tiny(kind))
        row = pick_readout(model, task(max_length=20)).encode([long])[0]
        text = model.tokenizer.decode(row.ids)
        assert len(row.ids) == 20 and "".join(text.split()).endswith("".join(tail.split()))
        assert text.count("boring") >= 3


def test_pairs_are_cut_at_the_longer_text(tiny):
    model = opened(tiny("bert"))
    pair = Task.load("rte", words={"entailment": "yes", "not_entailment": "no"}, max_length=24)
    row = pick_readout(model, pair).encode([Example("a film", "the acting was awful " * 30, "entailment")])[0]
    text = model.tokenizer.decode(row.ids)
    assert len(row.ids) <= 24 and "a film ? [MASK] , the acting was" in text.replace("?", " ? ").replace(
        ",", " , "
    ).replace("  ", " ")


def test_a_mask_in_the_text_is_not_where_the_label_is_read(tiny):
    model = opened(tiny("bert"))
    readout = pick_readout(model, task())
    spiked, plain = readout.encode(
        [Example("[MASK] good {text} film", "", "positive"), Example("good {text} film", "", "positive")]
    )
    assert spiked == plain and spiked.ids.count(model.tokenizer.mask_token_id) == 1


@pytest.mark.parametrize("kind", ["bert", "bert-encoder", "gpt2", "llama"])
def test_padding_changes_nothing(tiny, kind):
    model = opened(tiny(kind))
    readout = pick_readout(model, task())
    rows = readout.encode(ROWS)
    together = readout.logits(model.module, *collate(model, rows))
    alone = torch.cat([readout.logits(model.module, *collate(model, [row])) for row in rows])
    assert torch.allclose(together, alone, atol=1e-5)


def test_scores_agree_with_themselves_and_are_saved(tiny, tmp_path):
    result = score(tiny("gpt2"), task(), against=tiny("gpt2"), device="cpu")
    assert result.agreement == 1.0
    right = sum(int(row.argmax()) == number for row, number in zip(result.logits, task().targets(ROWS), strict=True))
    assert result.accuracy == right / len(ROWS)
    assert (result.save(tmp_path / "out") / "report.json").exists()


def test_what_cannot_be_loaded_is_refused(tiny, copied):
    with pytest.raises(OptionError, match=r"^`device` nonsense"):
        load_model(Checkpoint(tiny("bert")), device="nonsense")
    with pytest.raises(OptionError, match=r"^`dtype` int3"):
        load_model(Checkpoint(tiny("bert")), dtype="int3", device="cpu")
    folder = copied("bert")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load_model(Checkpoint(folder), device="cpu")


def test_checkpoints_must_be_alike(tiny, copied, tmp_path):
    with pytest.raises(CheckpointError, match="both must be one architecture"):
        check_alike(Checkpoint(tiny("bert")), Checkpoint(tiny("gpt2")), [])
    folder = copied("bert")
    vocabulary = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(vocabulary.replace('"awful"', '"lousy"'))
    with pytest.raises(CheckpointError, match="different tokenizers"):
        check_alike(Checkpoint(tiny("bert")), Checkpoint(folder), [])
    assert isinstance(pick_readout(opened(tiny("bert-encoder")), task()), PhraseReadout)


def test_label_words_are_tokenised_as_they_stand_in_the_prompt():
    """With a byte-level BPE, a word after a space is another token than the word alone."""
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator(["No No No Yes Yes Yes", "Yes No", "No Yes", "a film, No way? Yes, a film"] * 9, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core)
    single, spaced = tokenizer.encode("No"), tokenizer.encode("a No")[-1:]
    assert len(single) == 1 and single != spaced and tokenizer.convert_ids_to_tokens(spaced) == ["ĠNo"]
    for before in ("{text} ", "{text}? ", "{text} It was ", "{text} Answer:", "{text}"):
        assert _one_token(tokenizer, before, "No") == spaced[0], before
    assert _one_token(tokenizer, "", "No") == single[0]


def test_cosines_are_taken_in_single_precision_under_autocast(tiny):
    model = opened(tiny("bert-encoder"))
    readout = pick_readout(model, task())
    batch = collate(model, readout.encode(ROWS))
    with torch.autocast("cpu", torch.bfloat16):
        found = readout.logits(model.module, *batch)
    assert found.dtype == torch.float32 and torch.allclose(found, readout.logits(model.module, *batch), atol=0.5)


def test_an_unnamed_head_stands_in_the_datasets_order(tmp_path):
    folder = build("bert-classifier", tmp_path / "three")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, ignore_mismatched_sizes=True
    )
    model.save_pretrained(folder)
    loaded = opened(folder)
    # mnli's integers: 0 entailment, 1 neutral, 2 contradiction; its labels here: contradiction, entailment, neutral
    assert pick_readout(loaded, Task.load("mnli")).order == (2, 0, 1)
    rows = [Example("a", "", label) for label in "xyz"]
    with pytest.raises(TaskError, match="doesn't name its labels"):
        pick_readout(loaded, Task.load("mine", train=rows))


def test_texts_are_never_dropped_unseen(tiny):
    pair = Example("a film", "good food", "entailment")
    with pytest.raises(TaskError, match="has no second text"):
        Task.load("rte", test=[pair, Example("a film", "", "entailment")])
    mine = Task.load("mine", test=[pair, pair._replace(label="other")], words={"entailment": "yes", "other": "no"})
    with pytest.raises(TaskError, match=r"the examples are pairs, but the prompt .* has no \{text_pair\}"):
        pick_readout(opened(tiny("bert")), mine)
    for prompt in ("{mask}: {text}", "{text}? {mask}, this is"):
        with pytest.raises(TaskError, match="no prompt for a causal language model"):
            pick_readout(opened(tiny("gpt2")), task(prompt=prompt))
    assert task(prompt="{text} This is {mask}!").causal_prompt == "{text} This is"
    with pytest.raises(TaskError, match="no prompt for a masked language model"):
        pick_readout(opened(tiny("bert")), task(prompt="", causal_prompt="{text} This is"))


def test_a_causal_classifier_pads_with_the_token_it_looks_for(tmp_path, tiny):
    folder = build("gpt2", tmp_path / "gpt2")
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=2, pad_token_id=5)
    torch.manual_seed(0)
    transformers.GPT2ForSequenceClassification(config).save_pretrained(folder)
    model = opened(folder)
    readout = pick_readout(model, task())
    rows = readout.encode(ROWS)
    alone = torch.cat([readout.logits(model.module, *collate(model, [row])) for row in rows])
    assert torch.allclose(readout.logits(model.module, *collate(model, rows)), alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta", "bert-encoder", "gpt2"])
def test_texts_longer_than_the_models_positions_are_cut_to_them(tiny, kind):
    model = opened(tiny(kind))
    readout = pick_readout(model, task(max_length=1000))
    (row,) = readout.encode([Example("the film was boring " * 60, "", "negative")])
    assert len(row.ids) == 64 and torch.isfinite(readout.logits(model.module, *collate(model, [row]))).all()


def test_configs_must_agree_in_what_weights_mean(copied):
    base, other = copied("llama"), copied("llama", "other")
    config = json.loads((other / "config.json").read_text())
    for key, value, refused in (("rms_norm_eps", 0.1, True), ("use_cache", False, False), ("pad_token_id", 1, False)):
        (other / "config.json").write_text(json.dumps({**config, key: value}))
        if refused:
            with pytest.raises(CheckpointError, match=f"config.json says {key} "):
                check_alike(Checkpoint(base), Checkpoint(other), [])
        else:
            check_alike(Checkpoint(base), Checkpoint(other), [])


@pytest.mark.parametrize("name", ["fnet", "convbert", "funnel", "yoso", "nystromformer", "mobilebert"])
def test_models_whose_places_mix_are_read_as_if_each_text_were_alone(tmp_path, name):
    """Padding changes what they say, whether it is masked or not: texts of one length share a batch."""
    folder = architectures.build(architectures.classes("masked")[name], tmp_path / name, "masked")
    model = opened(folder)
    assert model.padding_matters
    readout = pick_readout(model, task())
    rows = [*ROWS, Example("we hated it", "", "negative")]
    found = logits_of(model, readout, rows)
    plain = model.module
    words = model.tokenizer.convert_tokens_to_ids(["terrible", "great"])
    wanted = []
    for row in rows:
        inputs = model.tokenizer(f"{row.text} It was [MASK].", return_tensors="pt")
        at = inputs["input_ids"][0].tolist().index(model.tokenizer.mask_token_id)
        wanted.append(plain(**inputs).logits[0, at, words])
    wanted = torch.stack(wanted).detach()
    assert torch.allclose(found, wanted, atol=1e-5)
    # Gradients too are of texts alone.
    numbers = list(range(len(rows)))
    assert sorted(n for part in alike(model, readout.encode(rows), numbers) for n in part) == numbers
    grafted = GraftedModel(model, readout, _all_of(model))
    assert torch.allclose(grafted.scores(readout.encode(rows)), wanted, atol=1e-5)


def _all_of(model):
    name = model.checkpoint.structure.blocks[0]
    values = model.parameters[name].detach().reshape(-1)
    return Candidates((name,), (0, len(values)), torch.arange(len(values)), values, values + 1, len(values), 1)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "bert-classifier", "bert-encoder"])
def test_models_that_only_attend_share_batches(tiny, kind):
    model = opened(tiny(kind))
    assert not model.padding_matters
    rows = pick_readout(model, task()).encode(ROWS)
    assert alike(model, rows, [2, 0, 1]) == [[2, 0, 1]]


def test_an_xlnet_classifier_is_read_at_the_texts_end_and_its_language_model_refused(tmp_path):
    folder = architectures.build("XLNetForSequenceClassification", tmp_path / "head", "classifier")
    model = opened(folder)
    readout = pick_readout(model, task())
    alone = [model.module(**model.tokenizer(row.text, return_tensors="pt")).logits[0] for row in ROWS]
    assert torch.allclose(logits_of(model, readout), torch.stack(alone).detach(), atol=1e-5)
    folder = architectures.build("XLNetLMHeadModel", tmp_path / "lm", "causal")
    with pytest.raises(CheckpointError, match="use XLNetForSequenceClassification"):
        opened(folder)


def test_an_output_matrix_that_is_not_called_is_never_read_at_position_0(tiny, monkeypatch):
    model = opened(tiny("bert"))
    readout = pick_readout(model, task())
    wanted = logits_of(model, readout)
    monkeypatch.setattr(model.module, "get_output_embeddings", lambda: torch.nn.Linear(16, 3))
    with pytest.raises(CheckpointError, match="doesn't put its hidden states through its output matrix"):
        logits_of(model, readout)
    whole = pick_readout(model, task())  # tried out: all positions are made, and the mask's taken
    assert whole.whole and torch.allclose(logits_of(model, whole), wanted, atol=1e-6)


def test_models_that_need_more_than_text_are_refused_in_a_sentence(tmp_path):
    folder = architectures.build("XmodForMaskedLM", tmp_path / "xmod", "masked")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "default_language": None}))
    with pytest.raises(CheckpointError, match=r"can't be run on text alone, here .*language"):
        pick_readout(opened(folder), task())


def test_special_tokens_behind_a_prompt_are_left_out_where_the_label_is_next(tmp_path):
    """A decoder with BERT's tokenizer: the label follows the prompt, not [SEP]."""
    folder = architectures.build("BertLMHeadModel", tmp_path / "bert", "masked")
    model = opened(folder)
    (row,) = pick_readout(model, task()).encode(ROWS[2:])
    assert model.tokenizer.convert_ids_to_tokens(row.ids) == ["[CLS]", "good", "food", "It", "was"]
    assert row.position == 4


def test_encoders_are_read_by_anothers_phrases_only_if_they_are_alike(tiny, tmp_path):
    other = architectures.build("ElectraModel", tmp_path / "other", "encoder")
    for options in ({"against": other}, {"base": other}):
        with pytest.raises(TaskError, match=r"can't be read by another checkpoint's embeddings"):
            score(tiny("bert-encoder"), task(), device="cpu", **options)
    assert score(tiny("bert-encoder"), task(), against=tiny("bert-encoder"), device="cpu").agreement == 1


def test_texts_too_short_for_a_model_are_told_in_a_sentence(tmp_path):
    """Funnel pools so often that the library can't attend over what is left of a few tokens."""
    folder = architectures.build("FunnelModel", tmp_path / "funnel", "encoder")
    with pytest.raises(CheckpointError, match=r"a FunnelModel can't be run on text alone, here \d+ tokens"):
        score(folder, task(), device="cpu")
    folder = architectures.build("FunnelBaseModel", tmp_path / "base", "encoder")
    with pytest.raises(CheckpointError, match=r"a FunnelBaseModel gives 2 states for 7 tokens"):
        score(folder, task(), device="cpu")
