"""Sampled sentences as files, and a tokenizer for a grammar's words."""

from typing import TYPE_CHECKING, Any

from pcfg.errors import GrammarError
from pcfg.grammars.grammar import Grammar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BEGIN, END, UNKNOWN, MASK = SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")


def tokenizer(grammar: Grammar) -> "PreTrainedTokenizerFast":
    """A tokenizer with one token a word: first the special ones, then the grammar's words in their order.

    It splits at spaces, puts <s> and </s> around a sentence (twice for a pair), and takes other words for <unk>. A
    grammar that has <unk> among its own words shares it.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    for word in grammar.words:
        if any(c.isspace() for c in word):
            raise GrammarError(f"the word {word!r} holds a space, and the tokenizer splits at spaces: rename it")
        for special in SPECIAL:
            if special in word and word != UNKNOWN:
                raise GrammarError(f"the word {word!r} holds the special token {special}: rename the word")
    numbers = {token: i for i, token in enumerate(dict.fromkeys((*SPECIAL, *grammar.words)))}
    model: Any = Tokenizer(WordLevel(numbers, unk_token=UNKNOWN))
    model.pre_tokenizer = WhitespaceSplit()
    model.post_processor = TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        pair=f"{BEGIN} $A {END} {BEGIN}:1 $B:1 {END}:1",
        special_tokens=[(token, numbers[token]) for token in (BEGIN, END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=UNKNOWN,
        mask_token=MASK,
        clean_up_tokenization_spaces=False,
    )
