"""Every test starts from the same random state, and one thread computes: results do not hang on the machine."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
