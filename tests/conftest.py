"""Every test starts from the same random state, and one thread computes: results do not hang on the machine.

``python -m pytest tests/test_contract.py --device cuda`` runs tests on a GPU: where tensors and networks are made.
"""

import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--device", help="where tensors are made that name no device, such as cuda; the CPU if not given")


def pytest_configure(config):
    if device := config.getoption("--device"):
        torch.set_default_device(device)
        torch.backends.cudnn.deterministic = True  # tests compare bit by bit
        torch.backends.cudnn.allow_tf32 = False
        for notice in ("Attempting to run cuBLAS", "`torch.jit.script_method` is deprecated"):  # PyTorch's own
            config.addinivalue_line("filterwarnings", f"ignore:{notice}")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
