"""The memory that is predicted is the memory that is used, where a model is small enough to be measured."""

import pytest
import torch

from rad_bench.bench.step_memory import step_memory

CPU = torch.device("cpu")
BLOCKS = ("none", "lstm", "mamba2", "ttt", "attention")


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "checkpointing"), [*((memory, False) for memory in BLOCKS), ("none", True)])
def test_a_training_step_allocates_what_is_predicted(memory, checkpointing):
    found = step_memory(memory, CPU, checkpointing)
    assert found.measured - found.resident == pytest.approx(found.predicted - found.resident, rel=0.05)
