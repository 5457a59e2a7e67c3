"""TinT: speed against a plain forward-backward-forward, sizes, and what learning while reading is worth.

python -m tests.benchmarks.tint speed | sizes | brown | smollm | sst2 | trec      [OUTPUT]

`brown`, `smollm`, `sst2` and `trec` need the text and data of `../shared` (or NLTK_DATA), the last three SmolLM2-135M in
`~/.cache/surgery-models`. They take some minutes each.
"""

import os
import resource
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from surgery.tint import TinT, count, run_task, run_text
from surgery.tint.example import train_small
from tests.support.measuring import best_of

SHARED = Path(__file__).resolve().parents[3] / "shared"
SMOLLM = Path(os.environ.get("MODELS_DIR", "~/.cache/surgery-models")).expanduser() / "smollm2"
SHARES = (0.3, 0.5, 0.7, 0.9)


def plain(model, ids, half):
    """Forward and backward over the training half by autograd, and a forward over all, with the library's own model."""

    def run():
        logits = model(ids[:, :half], use_cache=False).logits
        F.cross_entropy(logits[0, :-1], ids[0, 1:half], reduction="sum").backward()
        model.zero_grad()
        with torch.no_grad():
            model(ids, use_cache=False)

    return run


def speed(width=96, layers=4, tokens=128, vocabulary=1024):
    """The fast path and the materialised transformer, in multiples of plain forward-backward-forward."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        n_positions=tokens,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).eval()
    ids = torch.randint(vocabulary, (1, tokens))
    for share in (0.5, 0.9):
        half = round(share * tokens)
        mask = (torch.arange(tokens) < half)[None]
        base = best_of(plain(model, ids, half), 15)
        print(f"width {width}, {layers} blocks, {half} of {tokens} tokens train, {torch.get_num_threads()} thread(s):")
        print(f"  plain forward-backward-forward {1e3 * base:.1f} ms")
        for name, mode, materialise in (
            ("exact", "exact", False),
            ("paper", "paper", False),
            ("materialised", "paper", True),
        ):
            simulation = TinT.build(model, mode=mode, materialise=materialise)
            ours = best_of(lambda simulation=simulation, mask=mask: simulation(ids, mask, 1e-4), 15)
            print(f"  {name} {1e3 * ours:.1f} ms: {ours / base:.1f} times")


def sizes():
    """The table for OPT and GPT-2, in billions."""
    print("| model | weights | simulator | ratio | rows x prefixes, embedding | one set for all | no sharing |")
    for name in ("opt-125m", "opt-1.3b", "opt-2.7b", "opt-6.7b", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
        began = time.perf_counter()
        c = count(name)
        spent = time.perf_counter() - began
        print(
            f"| {name} | {c.shape.weights / 1e9:.3f} | {c.total / 1e9:.3f} | {c.ratio:.1f} | {c.layout.rows} x {c.layout.prefixes}, "
            f"{c.layout.embedding:,} | {c.shared_by_all / 1e9:.3f} | {c.unshared / 1e9:.1f} | {1e3 * spent:.1f} ms"
        )


def brown_text():
    """Brown's words as running text, the genres in turn so that neighbours come from one document: (train, held out)."""
    os.environ.setdefault("NLTK_DATA", str(SHARED / "nltk_data"))
    from nltk.corpus import brown

    documents = brown.fileids()
    held = documents[::10]

    def read(names):
        return "\n\n".join(" ".join(" ".join(sentence) for sentence in brown.sents(name)) for name in names)

    return read([name for name in documents if name not in held]), read(held)


def report(found, output):
    """Print the table, and keep the report where one is wanted."""
    print(found.markdown())
    if output:
        found.save(output, overwrite=True)


def brown(output=None, steps=900):
    """A GPT-2 of 4 blocks, 128 wide, trained here on Brown; perplexity on documents it hasn't seen."""
    train, held = brown_text()
    began = time.perf_counter()
    model, tokenizer = train_small(
        train, width=128, layers=4, heads=4, vocabulary=2048, window=256, steps=steps, batch=8, lr=1e-3
    )
    print(f"trained {steps} steps in {time.perf_counter() - began:.0f} s")
    ids = torch.tensor(tokenizer(held, verbose=False)["input_ids"])
    report(
        run_text(
            model,
            ids,
            shares=SHARES,
            window=256,
            windows=40,
            dev_windows=10,
            batch_size=4,
            lr=(3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        ),
        output,
    )


def smollm(output=None, windows=10):
    """SmolLM2-135M on the same documents; one step on 256 tokens, timed, and its peak memory."""
    _, held = brown_text()
    file = Path(f"/tmp/brown-held-{os.getpid()}.txt")
    file.write_text(held, encoding="utf-8")
    try:
        found = run_text(
            str(SMOLLM),
            file,
            shares=SHARES,
            window=256,
            windows=windows,
            dev_windows=3,
            lr=(1e-5, 3e-5, 1e-4),
            progress=tell,
        )
    finally:
        file.unlink()
    report(found, output)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def one_step():
    """SmolLM2-135M: one step on 256 tokens of 320, in time and memory."""
    simulation = TinT.build(str(SMOLLM), mode="paper")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    ids = torch.randint(40000, (1, 320), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(320) < 256)[None]
    busy = time.process_time()
    spent = best_of(lambda: simulation(ids, mask, 1e-5), 1)
    busy = time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"SmolLM2-135M, one paper step on 256 tokens: {spent:.1f} s, {busy:.1f} of them computing, peak memory {peak:.2f} GB ({before:.2f} loaded)"
    )


def task(name, output=None):
    """An in-context task with SmolLM2-135M, 16 to 18 demonstrations."""
    from surgery.tasks.task import Task

    folder = SHARED / "data" / name
    loaded = Task.load(name, train=folder / "train.jsonl", test=folder / "test.jsonl", max_length=64)
    shots = 16 if len(loaded.labels) == 2 else 18
    found = run_task(str(SMOLLM), loaded, shots=shots, tests=200, dev_examples=40, lr=(1e-5, 1e-4, 1e-3), progress=tell)
    report(found, output)


def tell(done, total, line):
    """Progress for a log."""
    print(f"{time.strftime('%H:%M:%S')} {line} ({done} of {total})", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    what, *rest = sys.argv[1:] or ["speed"]
    known = {"speed": speed, "sizes": sizes, "brown": brown, "smollm": smollm, "step": one_step}
    if what in ("sst2", "trec"):
        task(what, *rest)
    else:
        known[what](*rest)
