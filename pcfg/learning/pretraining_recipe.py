"""What model to pretrain and how: the recipe, and the RoBERTa configuration that follows from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcfg.errors import OptionError
from surgery.errors import first_line
from surgery.jsonfile import parse_loose


@dataclass(frozen=True)
class PretrainRecipe:
    """Model, sentences and training. Raises OptionError for a value out of its range.

    Attributes:
        layers, heads, width: of the RoBERTa encoder; feed-forward layers are four times as wide.
        sentences: drawn for training, each seen once; `max_length` is the most words of one.
        mask: share of the words that are masked.
        rate: peak of the learning rate (AdamW); it rises over the first `warmup` of the steps and falls to 0.
        evaluation: held-out sentences for the final excess loss.
    """

    layers: int = 6
    heads: int = 6
    width: int = 192
    sentences: int = 1_000_000
    max_length: int = 40
    batch_size: int = 64
    rate: float = 1e-3
    warmup: float = 0.05
    mask: float = 0.15
    evaluation: int = 1000

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "width", "sentences", "max_length", "batch_size", "rate", "evaluation"):
            if not getattr(self, name) > 0:
                raise OptionError(f"`{name}` must be above 0, not {getattr(self, name)}")
        if self.width % self.heads:
            raise OptionError(
                f"`width` {self.width} isn't a multiple of `heads` {self.heads}: each head has an equal part"
            )
        for name in ("mask", "warmup"):
            if not 0 < getattr(self, name) < 1:
                raise OptionError(f"`{name}` must lie between 0 and 1, not {getattr(self, name)}")


def read_config(path: str | Path) -> dict[str, Any]:
    """A `config.json`, or that of a model folder. Raises OptionError, naming the file, for anything else."""
    path = Path(path).expanduser()
    path = path / "config.json" if path.is_dir() else path
    try:
        content = parse_loose(path.read_bytes())
    except OSError as error:
        raise OptionError(f"{path} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise OptionError(f"{path} isn't JSON ({error}): name a RoBERTa's config.json") from None
    if not isinstance(content, dict):
        raise OptionError(f"{path} isn't a JSON object: name a RoBERTa's config.json")
    return content


def configured(recipe: PretrainRecipe, given: dict[str, Any] | None, words: Any) -> Any:
    """The `RobertaConfig` of a recipe, or of fields given in its place; OptionError for fields that aren't one's."""
    from transformers import RobertaConfig

    fields: dict[str, Any] = {
        "hidden_size": recipe.width,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "intermediate_size": 4 * recipe.width,
        "hidden_dropout_prob": 0.0,  # no sentence is seen twice, so there is nothing to regularise
        "attention_probs_dropout_prob": 0.0,
        "type_vocab_size": 1,
    }
    if given is not None:
        if given.get("model_type", "roberta") != "roberta":
            raise OptionError(f"the configuration is for {given['model_type']}: give one for a RoBERTa")
        fields = {key: value for key, value in given.items() if key not in ("architectures", "transformers_version")}
    needed = recipe.max_length + 3 + words.pad_token_id  # RoBERTa counts positions from the padding's number on
    fields["max_position_embeddings"] = max(needed, fields.get("max_position_embeddings", needed))
    fields |= {"vocab_size": len(words), "pad_token_id": words.pad_token_id}
    fields |= {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    try:
        return RobertaConfig(**fields)
    except Exception as error:  # the library checks fields in ways of its own
        raise OptionError(f"the configuration isn't a RoBERTa's ({first_line(error)})") from error
