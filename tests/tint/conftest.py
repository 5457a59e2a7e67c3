"""A tiny model in any precision, and a text to read."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.tiny import WORDS


@pytest.fixture
def model(tiny):
    """`model(kind, dtype)`: a tiny model with random weights, norms' weights around one as in real ones."""

    def get(kind, dtype=torch.float64):
        found = AutoModelForCausalLM.from_pretrained(tiny(kind), dtype=dtype).eval()
        with torch.no_grad():
            for name, parameter in found.named_parameters():
                if name.endswith("weight") and ("norm" in name or "ln_" in name):
                    parameter += 1
        return found

    return get


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A file of 700 random words."""
    generator = torch.Generator().manual_seed(0)
    picked = torch.randint(len(WORDS), (700,), generator=generator).tolist()
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(" ".join(WORDS[n] for n in picked))
    return file
