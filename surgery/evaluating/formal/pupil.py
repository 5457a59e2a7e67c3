"""A small model made on the spot that learns which texts go with which instructions."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from surgery.devices import pick_device
from surgery.evaluating.formal.items import draw_groups, prompt
from surgery.evaluating.formal.writer import write_neutral
from surgery.progress import Progress, silent
from surgery.quiet import quiet

STEPS = 220
_SKILLS = ("uppercase", "lowercase", "json", "hashtags", "numbered", "quotation", "question", "aside", "exclamation")


def save_pupil(folder: Path, *, seed: int = 0, device: Any = None, progress: Progress = silent) -> None:
    """Write `before`, a small GPT-2 of random weights, and `after`, the same once it has learnt, into a folder."""
    from transformers import GPT2Config, GPT2LMHeadModel

    pairs = [
        (f"{prompt(group.topic, skills)}\n\n", text)
        for group in draw_groups(1, 220, seed, _SKILLS)
        for skills, text in zip(group.skills, group.texts, strict=True)
    ]
    pairs += [
        (f"{prompt(topic)}\n\n", write_neutral(topic, number)) for topic in ("dogs", "rain") for number in range(40)
    ]
    tokenizer = _tokenizer([told + text for told, text in pairs])
    place = pick_device(device)
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=96, n_layer=3, n_head=3, n_positions=384, bos_token_id=0, eos_token_id=0,
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)  # fmt: skip
    model = GPT2LMHeadModel(config).to(place)
    _save(model, tokenizer, folder / "before")
    rows = [(tokenizer(told)["input_ids"], [*tokenizer(text)["input_ids"], 0]) for told, text in pairs]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(STEPS):
        picked = torch.randint(len(rows), (8,)).tolist()
        batch = [rows[number] for number in picked]
        longest = max(len(told) + len(text) for told, text in batch)
        ids = torch.tensor(
            [[*told, *text, *[0] * (longest - len(told) - len(text))] for told, text in batch], device=place
        )
        labels = torch.tensor(
            [[*[-100] * len(told), *text, *[-100] * (longest - len(told) - len(text))] for told, text in batch],
            device=place,
        )
        loss = F.cross_entropy(model(ids, use_cache=False).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress(step + 1, STEPS, f"learning: loss {loss.item():.2f}")
    _save(model, tokenizer, folder / "after")


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _tokenizer(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", bos_token="<end>", pad_token="<end>")
