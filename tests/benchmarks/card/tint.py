"""TinT on a card against a plain forward-backward-forward of the same model by autograd, in one run."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from surgery.tint import TinT, cuda_graphs
from tests.benchmarks.card.measure import Line, faster, holds, peak_bytes, timed

MOST = 1.3  # times plain, at most
TOKENS = (256, 1024)


def plain(model, ids, half):
    """Forward and backward over the training half, every weight of the blocks with a gradient, and a forward over all."""
    blocks = [parameter for name, parameter in model.named_parameters() if ".h." in name or ".layers." in name]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in blocks:
        parameter.requires_grad_(True)

    def run():
        logits = model(ids[:, :half], use_cache=False).logits
        torch.autograd.grad(F.cross_entropy(logits[0, :-1], ids[0, 1:half], reduction="sum"), blocks)
        with torch.no_grad():
            model(ids, use_cache=False)

    return run


def lines() -> Iterator[Line]:
    """GPT-2 of 124M, with and without graphs; a LLaMA of 1.17 billion, too large for them."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        gpt2 = GPT2LMHeadModel(GPT2Config()).eval()
    for tokens in TOKENS:
        yield from _one("GPT-2 124M", gpt2, tokens)
    del gpt2
    torch.cuda.empty_cache()
    sizes = {"hidden_size": 2048, "num_hidden_layers": 20, "intermediate_size": 5632, "num_key_value_heads": 8}
    with torch.device("cuda"):
        llama = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=32)).eval()
    yield from _one(f"LLaMA {sum(p.numel() for p in llama.parameters()) / 1e9:.2f}B", llama, 1024)


def _one(name, model, tokens) -> Iterator[Line]:
    ids = torch.randint(model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(tokens) < tokens // 2)[None]
    simulation, eager = TinT.build(model, mode="paper"), TinT.build(model, mode="paper")
    base = timed(plain(model, ids.cuda(), tokens // 2), 5)
    ours = timed(lambda: simulation(ids, mask, 1e-4), 5)
    captured, reason = bool(simulation._graphs._captured), simulation._graphs.reason
    eager._graphs.reason = "for comparison"
    slow = timed(lambda: eager(ids, mask, 1e-4), 5)
    peak = peak_bytes(lambda: simulation(ids, mask, 1e-4))
    note = f"without graphs {1e3 * slow:.1f} ms; {peak / 1e9:.2f} GB"
    yield faster(f"tint {name}, {tokens} tokens: paper; plain", ours, base, 1 / MOST, note)
    if cuda_graphs.pays(torch.device("cuda"), simulation.auxiliary.bytes):
        yield holds(f"tint {name}, {tokens} tokens: captured", captured, reason or "")
        a, b, c = simulation(ids, mask, 1e-4), simulation(ids, mask, 1e-4), eager(ids, mask, 1e-4)
        yield holds(f"tint {name}, {tokens} tokens: same bits twice", torch.equal(a.logits, b.logits))
        error = float((a.logits - c.logits).abs().max())
        yield holds(f"tint {name}, {tokens} tokens: as without graphs", error < 1e-3, f"{error:.1e}")
