"""The library prints only where it is asked to, and its logger is the user's to set up."""

import subprocess
import sys

PROGRAM = """
import sys
sys.path[:0] = {path!r}
import torch
from torch import nn
from layerprune import UniversalLayerPruner, compare, load_pruned

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
    def forward(self, x):
        return x + self.conv(x).relu()

torch.manual_seed(0)
blocks = [Block() for _ in range(4)]
net = nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
data = [torch.randn(8, 3, 12, 12) for _ in range(4)]
pruner = UniversalLayerPruner(net, calibration=data)
small = pruner.prune(max_param_reduction=0.5)
pruner.distill(data, num_epochs=1)
pruner.save({folder!r})
load_pruned({folder!r}, model=net)
compare(net, small, data)
assert pruner.model is small and pruner.repair_report is not None
"""


def run(program):
    return subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)


def test_a_whole_use_of_the_library_prints_nothing(tmp_path):
    done = run(PROGRAM.format(path=sys.path, folder=str(tmp_path / "small")))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_logger_has_a_null_handler_and_takes_the_users(caplog):
    program = "import logging, layerprune; print(logging.getLogger('layerprune').handlers)"
    assert run(program).stdout.strip() == "[<NullHandler (NOTSET)>]"
