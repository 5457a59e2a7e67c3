"""Peak memory of locating a skill in MiniLM against that of one plain fine-tuning step, each in a process of its own.

python -m tests.benchmarks.memory TRAIN.jsonl TUNED        # trec's training examples; a MiniLM tuned on them
"""

import subprocess
import sys

from surgery import Checkpoint, Task
from surgery.grafting.candidates import Candidates, GraftedModel
from surgery.grafting.example import minilm
from surgery.grafting.methods import Evidence, dual_averaging


def step(train: str, _: str) -> None:
    """One step of SGD on the block weights with a batch of 16, in plain transformers and torch."""
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(minilm().folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm().folder)
    model.embeddings.requires_grad_(False)
    optimizer = torch.optim.SGD(model.encoder.parameters(), lr=0.05, momentum=0.9)
    texts = [example.text for example in Task.load("trec", train=train, shots=64).train[:16]]
    hidden = model(**tokenizer(texts, padding=True, return_tensors="pt")).last_hidden_state.mean(1)
    (hidden @ torch.randn(hidden.shape[1], 6)).logsumexp(1).mean().backward()
    optimizer.step()


def locate(train: str, tuned: str) -> None:
    """Everything graft() does between opening two checkpoints and knowing the weights."""
    import torch

    from surgery.checkpoints.models import load_model
    from surgery.tasks.calibration import softmax
    from surgery.tasks.readout import pick_readout
    from surgery.tasks.scoring import predict

    task = Task.load("trec", train=train, shots=64)
    base, after = minilm(), Checkpoint(tuned)
    candidates = Candidates.between(base, after, base.block_weights(), 1 << 20)
    model = load_model(base)
    readout = pick_readout(model, task)
    rows = readout.encode(task.train)
    model.load_weights(after)
    soft = torch.from_numpy(softmax(predict(model, readout, rows))).float()
    model.load_weights(base)
    evidence = Evidence(rows, torch.tensor(task.targets(task.train)), soft)
    dual_averaging(GraftedModel(model, readout, candidates), evidence, 1064)


def main() -> None:
    """Print both peaks and their ratio."""
    peaks = {}
    for name in ("step", "locate"):
        code = f"import resource; from tests.benchmarks import memory; memory.{name}(*{sys.argv[1:3]!r}); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks[name] = int(run.stdout.split()[-1]) / 1000
        print(f"{name}: peak {peaks[name]:.0f} MB")
    print(f"locate / step: {peaks['locate'] / peaks['step']:.2f}")


if __name__ == "__main__":
    main()
