"""Traits: what decides a checkpoint's computation besides its weights, fields of its config, and its tokenizer.

Neither is compared by bytes, which saving again changes. A config counts as the library completes it, without the
fields that change nothing; a tokenizer counts by its vocabulary, merges or scores, special tokens, and what it makes of
texts that bring out its normaliser and its way of splitting.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from surgery.checkpoints import configs
from surgery.checkpoints.checkpoint import Checkpoint, tokenizer_files
from surgery.checkpoints.models import load_tokenizer
from surgery.jsonfile import parse_loose
from surgery.quiet import quiet

# Count where both sides give one: a token to pad with may set where positions begin (RoBERTa).
_COUNT_WHERE_GIVEN = frozenset({"architectures", "pad_token_id"})
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TEXTS = (
    "The film, surprisingly, wasn't bad at all!",
    "UPPER lower MiXeD, don't they'll I'M",
    "naïve Café Ångström ﬁne e\u0301 ½",
    "  two  spaces\ta tab\nand a line \u00a0\u200b end ",
    "3.14159 1,000,000 2024-01-01 007",
    "中文字符 日本語 한국어 Привет สวัสดี 🙂👩‍👧",
    "snake_case camelCase x+=1; // #tag @user https://a.b/c?d=e&f",
    "<s> [CLS] <|endoftext|> </s> [MASK] ``quoted'' -LRB-",
    "unbelievably antidisestablishmentarianistically " + 110 * "a",
)
_PAIR = ("Is it a question?", "It is an answer.")


@dataclass(frozen=True)
class Traits:
    """The traits of one checkpoint.

    Attributes:
        config: the fields of its `config.json` that count, as they stand there.
        files: a hash of the tokenizer's files, empty where there are none; the same files are the same tokenizer.
        tokenizer: hashes of `vocabulary`, `model` (merges or scores) and the ids of some texts, by a hash of the text; the
            special tokens; empty where none could be loaded.
    """

    config: Mapping[str, Any]
    files: str
    tokenizer: Mapping[str, str]

    @classmethod
    def of(cls, checkpoint: Checkpoint, like: "Traits | None" = None) -> "Traits":
        """Read them. Files that are those of `like` aren't loaded, which would take an import of the library."""
        config = configs.counting(checkpoint.config, _COUNT_WHERE_GIVEN)
        files = _hash_files(checkpoint.folder)
        if like is not None and files == like.files:
            return cls(config, files, like.tokenizer)
        return cls(config, files, _describe(checkpoint) if files else {})

    def difference(self, other: "Traits") -> str:
        """The first way in which the other computes otherwise, as an end to "a checkpoint whose ..."; empty for none.

        What only one of the two knows of is no difference.
        """
        if differs := configs.difference(self.config, other.config, _COUNT_WHERE_GIVEN):
            key, ours, theirs = differs
            return f"config.json says {key} {_short(theirs)} instead of {_short(ours)}"
        if self.files == other.files:
            return ""
        for key in [
            key for key in self.tokenizer if other.tokenizer.get(key, self.tokenizer[key]) != self.tokenizer[key]
        ]:
            if key in _SPECIAL:
                return f"tokenizer has {key} {other.tokenizer[key]!r} instead of {self.tokenizer[key]!r}"
            return f"tokenizer {_MEANING.get(key, 'makes other tokens of text')}"
        return ""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(vars(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Traits":
        """The inverse of `to_json`; raises ValueError, TypeError or KeyError for what isn't that."""
        content = parse_loose(text)
        config, files, tokenizer = (content[name] for name in ("config", "files", "tokenizer"))
        strings = [files, *tokenizer, *tokenizer.values()] if isinstance(tokenizer, dict) else [None]
        if not isinstance(config, dict) or not all(isinstance(value, str) for value in strings):
            raise ValueError("traits that aren't tables")
        return cls(config, files, tokenizer)


def _key(*texts: str) -> str:
    return xxhash.xxh32(" | ".join(texts).encode()).hexdigest()


_MEANING = {
    "vocabulary": "has another vocabulary",
    "model": "has other merges or scores",
    **{_key(text): f"makes other tokens of {text!r}" for text in _TEXTS},
    _key(*_PAIR): "puts two texts together otherwise",
}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _hash_files(folder: Path) -> str:
    total = xxhash.xxh3_128()
    files = tokenizer_files(folder)
    for path in files:
        total.update(f"{path.name}:{path.stat().st_size}:".encode())
        total.update(path.read_bytes())
    return total.hexdigest() if files else ""


def _describe(checkpoint: Checkpoint) -> dict[str, str]:
    try:
        with quiet():
            tokenizer = load_tokenizer(checkpoint)
            ids = {_key(*texts): tokenizer(*texts)["input_ids"] for texts in (*((text,) for text in _TEXTS), _PAIR)}
    except Exception:  # a tokenizer that none of our models could use either
        return {}
    traits = {"vocabulary": _hash(sorted(tokenizer.get_vocab().items()))}
    if backend := getattr(tokenizer, "backend_tokenizer", None):
        traits["model"] = _hash(_merges_or_scores(json.loads(backend.to_str())["model"]))
    elif ranks := getattr(tokenizer, "bpe_ranks", None):
        traits["model"] = _hash(sorted(ranks, key=ranks.get))
    traits |= {name: str(value) for name in _SPECIAL if (value := getattr(tokenizer, name, None)) is not None}
    return traits | {key: _hash(tokens) for key, tokens in ids.items()}


def _merges_or_scores(model: Mapping[str, Any]) -> list[Any]:
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model.get("merges") or ()]
    return merges or (model["vocab"] if isinstance(model.get("vocab"), list) else [])


def _hash(content: Any) -> str:
    return xxhash.xxh3_64(json.dumps(content).encode()).hexdigest()
