"""MaskedWords: sentences with one word masked, the exact posterior of that word, and the states of the masks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from pcfg.devices import Device
from pcfg.learning.excess_loss import MaskedSet, masked_log_probs, word_ids
from probes.dataset import Dataset
from probes.probed_model import ProbedModel, pad
from surgery.progress import Progress, silent

_COPIES, _BATCH = 3, 64
_FLOOR = 1e-12


@dataclass(frozen=True, eq=False)
class MaskedWords:
    """Sentences with one word masked, and the exact posterior of that word.

    Attributes:
        sentence: number in the dataset of each row's sentence; `position` of its mask.
        masked: the exact posteriors, one mask a row.
        table: P(word | tag).
    """

    dataset: Dataset
    sentence: Int64[np.ndarray, " rows"]
    position: Int64[np.ndarray, " rows"]
    masked: MaskedSet
    table: Float64[np.ndarray, "T V"]

    @classmethod
    def draw(
        cls, dataset: Dataset, *, seed: int, device: Device | None = None, progress: Progress = silent
    ) -> "MaskedWords":
        """Mask one word in copies of each sentence; the dataset must have a grammar."""
        grammar = dataset.grammar
        assert grammar is not None
        numbers = np.repeat(np.arange(len(dataset.sentences)), _COPIES)
        masked = MaskedSet.draw(
            grammar, [dataset.sentences[i] for i in numbers], seed=seed, count=1, device=device, progress=progress
        )
        position = np.array([places[0] for places in masked.masks], np.int64)
        return cls(dataset, numbers, position, masked, grammar.lexical_table)

    def rows(self, numbers: Int64[np.ndarray, " some"]) -> Int64[np.ndarray, " rows"]:
        """Find the rows of some sentences."""
        return np.flatnonzero(np.isin(self.sentence, numbers))

    def posterior(self, rows: Int64[np.ndarray, " rows"]) -> Float32[np.ndarray, "rows V"]:
        """Return exact posteriors of the grammar's words."""
        return (self.masked.tags[rows] @ self.table).astype(np.float32)

    def states(
        self, model: ProbedModel, layers: Sequence[int], progress: Progress = silent
    ) -> dict[int, Float32[np.ndarray, "rows width"]]:
        """Run the model; return the masks' states after some layers."""
        ids_of = word_ids(self.masked.grammar, model.tokenizer)
        mask_id = model.tokenizer.mask_token_id
        assert len(ids_of)
        encoded = model.encode(self.dataset.sentences)
        by_layer = {layer: np.zeros((len(self.sentence), model.width), np.float32) for layer in layers}
        order = np.argsort([-len(encoded[i].ids) for i in self.sentence], kind="stable")
        for batch in np.array_split(order, -(-len(order) // _BATCH)):
            ids, mask = pad(model, [encoded[self.sentence[row]] for row in batch])
            columns = [encoded[self.sentence[row]].words.index(self.position[row]) for row in batch]
            ids[np.arange(len(batch)), columns] = mask_id
            for layer, states in model.hidden_states(ids, mask, layers).items():
                by_layer[layer][batch] = states[np.arange(len(batch)), columns].float().cpu().numpy()
            progress(0, 0, f"masked words: {model.name}")
        return by_layer

    def model_kl(self, model: ProbedModel, rows: Int64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
        """KL(exact || the model's own prediction) at each mask, in nats."""
        grammar = self.masked.grammar
        ids, losses = word_ids(grammar, model.tokenizer), np.zeros(len(rows))
        for some in np.array_split(np.arange(len(rows)), -(-len(rows) // _BATCH)):
            sentences = [self.dataset.sentences[self.sentence[row]] for row in rows[some]]
            places = [[int(self.position[row])] for row in rows[some]]
            logs = masked_log_probs(model.module, model.tokenizer, sentences, places, grammar, ids)
            losses[some] = divergence(self.posterior(rows[some]), logs)
        return losses


def divergence(wanted: np.ndarray, logs: np.ndarray) -> Float64[np.ndarray, " rows"]:
    """KL(wanted || predicted) of each row, in nats, from probabilities and log probabilities."""
    wanted = wanted.astype(np.float64)
    own = np.log(wanted, out=np.zeros_like(wanted), where=wanted > _FLOOR)
    return (wanted * (own - logs)).sum(1)
