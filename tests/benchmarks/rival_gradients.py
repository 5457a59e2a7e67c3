"""Gradients of rows and Adam's map beside dattri-llm's, in one process: cosines and CPU seconds.

python -m tests.benchmarks.rival_gradients MODEL [--tokens 32 --rows 16]      # pip install --no-deps dattri-llm, in an environment of its own
"""

import argparse
import json

import torch

from surgery.selecting.capture import gradients
from surgery.selecting.maps import GradientMap
from surgery.selecting.warmup import BETAS
from tests.benchmarks.selecting import model_and_rows, shortest

EPS = 1e-8  # dattri-llm takes it from the optimizer


def compared(given, how):
    """Our gradients (`sgd`) or directions (`adam-corrected`) of a batch beside dattri-llm's of the same loss."""
    from dattri_llm import HookManager, HookManagerConfig

    model, objective, adapter, lessons = model_and_rows(given.model, given.tokens, given.rows)
    weights, optimizer = adapter.weights, None
    for weight in weights.values():
        weight.requires_grad_(True)
    if how != "sgd":
        optimizer = torch.optim.Adam(weights.values(), lr=1e-3, betas=BETAS, eps=EPS)
        for _ in range(3):  # so that both moments hold something
            objective.losses(model, lessons).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    states = {name: optimizer.state[weight] for name, weight in weights.items()} if optimizer else {}
    change = GradientMap(how, states, 3 if optimizer else 0)
    names = {id(module): name for name, module in model.module.named_modules()}
    paths = {name: names[id(layer)] for name, layer in adapter.layers.items()}
    kinds = dict.fromkeys(paths.values(), "linear_io")
    config = HookManagerConfig(hook_types=kinds, capture_style="materialized")
    found, theirs = {}, {}

    def ours():
        def sink(numbers):
            def take(name, each):
                found[name] = (numbers, change(name, each.flatten(1)))

            return take

        for _ in gradients(model, objective, lessons, adapter.layers, given.rows, sink):
            pass

    def rival():
        objective.losses(model, lessons).sum().backward()
        theirs.update(manager.get_gradient().data)
        for weight in weights.values():
            weight.grad = None

    own = shortest(ours, given.times) / given.rows
    manager = HookManager(model.module, config=config, optimizer=optimizer)
    with manager.collect(deregister_on_exit=True):
        other = shortest(rival, given.times) / given.rows
    first, second = [], []
    for name, path in paths.items():
        numbers, each = found[name]
        first.append(each[torch.argsort(torch.tensor(numbers))])
        second.append(theirs[path].reshape(given.rows, -1))
    cosine = torch.nn.functional.cosine_similarity(torch.cat(first, 1).double(), torch.cat(second, 1).double(), dim=1)
    row = {"map": how, "rows": given.rows, "tokens": given.tokens, "weights": adapter.count}
    row |= {
        "least cosine": round(float(cosine.min()), 8),
        "seconds a row": round(own, 4),
        "dattri-llm": round(other, 4),
    }
    return row | {"times as fast": round(other / own, 2)}


def main():
    """Print one line a map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    for name, default in (("tokens", 32), ("rows", 16), ("times", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for how in ("sgd", "adam-corrected"):
        print(json.dumps(compared(given, how)), flush=True)


if __name__ == "__main__":
    main()
