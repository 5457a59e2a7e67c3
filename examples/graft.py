"""Find a skill, keep it, graft it, take it out again: the whole of it in Python, on the embedded example's words.

python examples/graft.py [OUTPUT]        # about half a minute; OUTPUT is a folder that isn't there yet
"""

import sys
from dataclasses import replace
from pathlib import Path

from surgery import Skill, graft, score, tune
from surgery.grafting.example import minilm, word_task
from surgery.tasks.examples import k_shot

output = Path(sys.argv[1] if len(sys.argv) > 1 else "graft-example")
base, task = minilm(), word_task()
task = replace(task, train=tuple(k_shot(task.train, task.labels, shots=200, seed=0)))

tuned = tune(base, task).save(output / "tuned")
skill = graft(base, tuned, task, sparsity=1e-4, seed=0)
skill.save(output / "skill")

grafted = Skill.load(output / "skill").apply(base, output / "grafted")
result = score(grafted, task, against=tuned)
print(f"{skill.delta.weights:,} weights ({skill.delta.sparsity:.0e} of the blocks)")
print(
    f"accuracy {skill.report['base']['accuracy']:.3f} -> {result.accuracy:.3f}, agreement with tuned {result.agreement:.3f}"
)

again = skill.revert(grafted, output / "again")
same = all((again / file.name).read_bytes() == file.read_bytes() for file in base.files)
print(f"taken out again, bit for bit: {same}")
