"""What every test needs before the first model: no network, torchvision's operators, one thread a worker."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported

import torch

from torchvision_ops import declare_missing_ops

declare_missing_ops()
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
