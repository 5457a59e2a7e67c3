"""The embedded example: a small GPT-2 learns the English of Python's own documentation, is verified and run."""

import ast
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from surgery.devices import pick_device
from surgery.errors import TintError
from surgery.files import check_output, new_folder
from surgery.progress import Progress, silent
from surgery.quiet import quiet
from surgery.tint.evaluation.perplexity import run_text
from surgery.tint.evaluation.report import Run
from surgery.tint.evaluation.verification import Verification, verify

FOLDER = "surgery-tint-example"
WINDOW = 128
_LETTERS = 1_500_000


def docstrings(limit: int = _LETTERS) -> str:
    """The documentation strings of the standard library's modules, classes and functions: English that is always there."""
    texts: list[str] = []
    total = 0
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError):
            continue  # a file that isn't text, of another installation's making
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                texts.append(text)
                total += len(text)
        if total > limit:
            break
    return "\n\n".join(texts)


def train_small(
    text: str,
    *,
    width: int = 96,
    layers: int = 4,
    heads: int = 4,
    vocabulary: int = 1024,
    window: int = WINDOW,
    steps: int = 250,
    batch: int = 8,
    lr: float = 2e-3,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: Progress = silent,
) -> tuple[Any, Any]:
    """A GPT-2 of a small size with a byte-level tokenizer of its own, both learnt from `text`: (model, tokenizer)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = _tokenizer(text, vocabulary)
    place = pick_device(device)
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], device=place)
    if len(ids) < 2 * window:
        raise TintError(f"the text has {len(ids)} tokens: {2 * window} are needed to learn from")
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_positions=window,
        bos_token_id=None,
        eos_token_id=None,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config).to(place)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        starts = torch.randint(len(ids) - window, (batch,))
        rows = torch.stack([ids[start : start + window] for start in starts.tolist()])
        loss = F.cross_entropy(model(rows, use_cache=False).logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(step + 1, steps, f"training: loss {loss.item():.2f}")
    return model.eval(), tokenizer


def run_example(
    output: Path | None = None,
    *,
    overwrite: bool = False,
    device: str | torch.device | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
    progress: Progress = silent,
) -> tuple[Verification, Run, Path]:
    """Make a model, count its simulator, verify, run. An earlier run's folder of the default name is replaced."""
    from surgery.tint.construction.counting import count

    folder = output or Path(FOLDER)
    overwrite = overwrite or output is None
    check_output(folder, overwrite=overwrite, replaces="model")
    text = docstrings()
    cut = int(0.95 * len(text))
    say(f"1. A GPT-2 of 4 blocks, 96 wide, learns from {cut:,} letters of Python's documentation")
    model, tokenizer = train_small(text[:cut], seed=seed, device=device, progress=progress)
    size = count(model)
    say(f"2. The transformer that simulates it has {size.total:,} weights, {size.ratio:.0f} times the model's")
    say("3. Every piece of the simulation against the model, every update against autograd")
    checked = verify(model, seed=seed, progress=progress)
    for line in checked.summary:
        say(f"   {line}")
    say("4. Perplexity on text it hasn't seen, learning from the first half of each window")
    ids = torch.tensor(tokenizer(text[cut:], verbose=False)["input_ids"])
    run = run_text(
        model, ids, shares=(0.5,), window=WINDOW, windows=48, dev_windows=16, batch_size=8, seed=seed, progress=progress
    )
    with new_folder(folder, overwrite=overwrite, replaces="model") as staged:
        with quiet():
            model.save_pretrained(staged / "model")
        tokenizer.save_pretrained(staged / "model")
        (staged / "text.txt").write_text(text[cut:], encoding="utf-8")
        checked.save(staged / "verification")
        run.save(staged / "run")
    return checked, run, folder


def _tokenizer(text: str, vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        text.split("\n\n"), trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=core)
