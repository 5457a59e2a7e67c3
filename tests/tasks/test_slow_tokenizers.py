"""Tokenizers that don't say where in the text their tokens lie, such as BERTweet's."""

import json

import pytest
import transformers

from surgery import Checkpoint, score
from surgery.checkpoints.models import load_model
from surgery.tasks.examples import Example
from surgery.tasks.readout import pick_readout
from tests.support.tiny import WORDS, build
from tests.tuning.test_tuning import task


@pytest.fixture(scope="module")
def bertweet(tmp_path_factory):
    """A tiny RoBERTa with BERTweet's slow tokenizer: letters, and the label words whole."""
    folder = build("roberta", tmp_path_factory.mktemp("slow") / "bertweet")
    for file in folder.glob("*token*"):
        file.unlink()
    letters = sorted(set("".join(WORDS)))
    pieces = [f"{letter}" for letter in letters] + letters
    (folder / "vocab.txt").write_text("".join(f"{piece} 1\n" for piece in ("great", "terrible", *pieces)))
    merges = []
    for word in ("great", "terrible"):
        for end in range(1, len(word)):
            last = f"{word[end]}</w>" if end == len(word) - 1 else word[end]
            merges.append(f"{word[:end]} {last} 1")
    (folder / "bpe.codes").write_text("\n".join(merges) + "\n")
    settings = {"tokenizer_class": "BertweetTokenizer", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert not tokenizer.is_fast and tokenizer.tokenize("great") == ["great"]
    model = transformers.RobertaForMaskedLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("words", [3, 10, 11, 40, 400])
@pytest.mark.parametrize("noun", ["film", "a", "wonderful"])
def test_long_texts_keep_as_many_words_as_there_is_room_for(bertweet, words, noun):
    model = load_model(Checkpoint(bertweet), device="cpu")
    readout = pick_readout(model, task())
    text = " ".join(["the", noun] * (words // 2 + 1))
    (row,) = readout.encode([Example(text, "", "positive")])
    tokenizer, all_words = model.tokenizer, text.split()
    whole = [
        tokenizer(f"{' '.join(all_words[:n])} It was {tokenizer.mask_token}.")["input_ids"]
        for n in range(len(all_words) + 1)
    ]
    assert row.ids == max((ids for ids in whole if len(ids) <= readout.max_length), key=len)
    assert row.ids[row.position] == tokenizer.mask_token_id


def test_a_word_longer_than_the_whole_prompt_is_cut_away(bertweet):
    result = score(
        bertweet, task(test=[Example("a" * 500, "", "positive"), Example("a film", "", "negative")]), device="cpu"
    )
    assert result.logits.shape == (2, 2)


def test_long_pairs_are_cut_too(bertweet):
    pairs = Example("the film " * 30, "a book " * 40, "entailment")
    model = load_model(Checkpoint(bertweet), device="cpu")
    words = {"entailment": "great", "not_entailment": "terrible"}
    readout = pick_readout(model, type(task()).load("rte", train=(), test=[pairs], words=words))
    (row,) = readout.encode([pairs])
    assert len(row.ids) <= readout.max_length and row.ids[row.position] == model.tokenizer.mask_token_id
