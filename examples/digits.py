"""Train a small residual network on scikit-learn's digits, prune 30 % of it, and compare.

Run it with ``python examples/digits.py``.
"""

from __future__ import annotations

import copy

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import layerprune
from layerprune import UniversalLayerPruner
from tables import comparison, print_in_brief

REPORT = "out/digits.html"
MAX_PARAM_REDUCTION = 0.30
NUM_EPOCHS = 25
BATCH_SIZE = 64
PEAK_LEARNING_RATE = 0.01
NUM_EXAMPLE_IMAGES = 256  # from the training split: what the impact of a removal is measured on
LATENCY_BATCH = 64
LATENCY_REPEATS = 30
console = Console()


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, as in ResNet-18."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class DigitNet(nn.Module):
    """A stem, three stages of residual blocks, a linear head; images of shape (batch, 1, 8, 8)."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96), depths: tuple[int, ...] = (3, 3, 3)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        stages, in_channels = [], widths[0]
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            first = Block(in_channels, width, stride=1 if index == 0 else 2)
            stages.append(nn.Sequential(first, *(Block(width, width, stride=1) for _ in range(depth - 1))))
            in_channels = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(in_channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def main() -> None:
    torch.set_num_threads(1)  # the network is too small to gain from more
    torch.manual_seed(0)
    train_images, test_images, train_labels, test_labels = load_data()
    model = DigitNet()
    train(model, train_images, train_labels, NUM_EPOCHS, PEAK_LEARNING_RATE)

    with console.status("planning"):
        pruner = UniversalLayerPruner(model, example_inputs=train_images[:NUM_EXAMPLE_IMAGES])
        plan = pruner.plan(max_param_reduction=MAX_PARAM_REDUCTION)
    print_in_brief(console, plan, "DigitNet", MAX_PARAM_REDUCTION)
    pruned = pruner.prune(plan=plan)
    trained_on = train(copy.deepcopy(pruned), train_images, train_labels, 1, PEAK_LEARNING_RATE / 10)
    console.print(compare(model, pruned, trained_on, test_images, test_labels))
    with console.status("writing the report"):
        fidelity = layerprune.compare(model, pruned, test_images.split(BATCH_SIZE), kind="distribution", latency=True)
        report = pruner.report(REPORT, fidelity=fidelity, origin="examples/digits.py")
    console.print(f"The report, with the picture of the network: {report.resolve()}", soft_wrap=True)


def load_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, test images, training labels, test labels; pixels in [0, 1]."""
    pixels, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(pixels, labels, test_size=0.25, random_state=0, stratify=labels)
    images = [torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16 for x in (train_x, test_x)]
    return images[0], images[1], torch.tensor(train_y), torch.tensor(test_y)


def train(model: nn.Module, images: Tensor, labels: Tensor, num_epochs: int, peak_learning_rate: float) -> nn.Module:
    """Train in place with Adam and one cycle of the learning rate; the model returns in eval mode."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    steps_per_epoch = len(images) // BATCH_SIZE
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_learning_rate, num_epochs * steps_per_epoch)
    model.train()
    with progress_bar() as progress:
        task = progress.add_task("training", total=num_epochs, loss=float("nan"), accuracy=float("nan"))
        for _ in range(num_epochs):
            loss_sum, num_right = 0.0, 0
            for batch in torch.randperm(len(images))[: steps_per_epoch * BATCH_SIZE].split(BATCH_SIZE):
                logits = model(shifted(images[batch]))
                loss = F.cross_entropy(logits, labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                cycle.step()
                loss_sum += loss.item()
                num_right += int((logits.argmax(1) == labels[batch]).sum())
            accuracy = num_right / (steps_per_epoch * BATCH_SIZE)
            progress.update(task, advance=1, loss=loss_sum / steps_per_epoch, accuracy=accuracy)
    return model.eval()


def shifted(images: Tensor) -> Tensor:
    """The batch moved by up to one pixel each way."""
    shifts = torch.randint(-1, 2, (2,)).tolist()
    return images.roll(shifts, dims=(2, 3))


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}, accuracy {task.fields[accuracy]:.1%}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=console,
    )


def compare(model: nn.Module, pruned: nn.Module, trained_on: nn.Module, images: Tensor, labels: Tensor) -> Table:
    title, batch = f"DigitNet on {len(images)} test digits", images[:LATENCY_BATCH]
    with torch.inference_mode():
        table = comparison(title, model, pruned, lambda m: m(batch), f"{LATENCY_BATCH} digits", LATENCY_REPEATS)
    accuracy = accuracy_of(model, images, labels)
    for name, other in (("accuracy", pruned), ("accuracy, pruned and trained 1 more epoch", trained_on)):
        other_accuracy = accuracy_of(other, images, labels)
        points = f"{100 * (other_accuracy - accuracy):+.1f} points"
        table.add_row(name, f"{accuracy:.1%}", f"{other_accuracy:.1%}", points)
    return table


@torch.inference_mode()
def accuracy_of(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return (model(images).argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    main()
