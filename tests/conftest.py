"""What every test needs: no network, torchvision's operators, one thread a worker, recordings that hold together."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported

import pytest
import torch

from browser import chromium, open_page  # noqa: F401  # fixtures
from layerprune.capture.graph_builder import GraphBuilder
from torchvision_ops import declare_missing_ops

declare_missing_ops()
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def every_recorded_graph_is_consistent():
    build = GraphBuilder.build

    def checked(builder):
        graph = build(builder)
        graph.lint()
        return graph

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphBuilder, "build", checked)
        yield
