# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # A CNN with images
#
# A small residual network learns scikit-learn's digits. Then half of it is removed, and the rest is compared with it.

# %%
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
torch.set_num_threads(1)

images, labels = load_digits(return_X_y=True)
images = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
labels = torch.tensor(labels)
train, test = train_test_split(torch.arange(len(labels)), test_size=0.3, random_state=0)


# %%
class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class DigitsNet(nn.Module):
    num_classes = 10

    def __init__(self, width=24, depth=6):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


model = DigitsNet()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
for _ in range(6):
    for batch in train[torch.randperm(len(train))].split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
model.eval()


def accuracy(net):
    with torch.no_grad():
        return (net(images[test]).argmax(1) == labels[test]).float().mean().item()


f"accuracy of the original: {accuracy(model):.1%}"

# %% [markdown]
# ## What can go
#
# The calibration data are training images, without labels. The model says `num_classes`, so its output is compared as
# logits.

# %%
from layerprune import UniversalLayerPruner, compare

calibration = list(images[train[:512]].split(64))
pruner = UniversalLayerPruner(model, calibration=calibration, progress=False)
pruner.print_plan(width=88)

# %% [markdown]
# Shown as a value, the pruner says the same in short:

# %%
pruner

# %% [markdown]
# ## Half of it

# %%
plan = pruner.plan(max_param_reduction=0.5)
plan

# %% [markdown]
# What other sizes would cost. The impacts of a set add up to the prediction; what the plan does together was measured:

# %%
axes = pruner.plot_frontier()

# %%
axes = pruner.plot_impact()

# %% [markdown]
# What the plan saves, measured on what is left:

# %%
print(pruner.saving(plan))

# %%
pruned = pruner.prune(plan=plan)
pruner.repair_report

# %% [markdown]
# ## On images that took part in nothing

# %%
print(f"accuracy: {accuracy(model):.1%} → {accuracy(pruned):.1%}")
compare(model, pruned, list(images[test].split(64)))

# %% [markdown]
# Without repair the same removals leave:

# %%
f"{accuracy(plan.apply(model)):.1%}"

# %% [markdown]
# ## Show it
#
# The report is one file, which needs no network:

# %%
from IPython.display import Markdown

pruner.report("digits-report.html", fidelity=compare(model, pruned, list(images[test].split(64))))
Markdown("[Open the report](digits-report.html)")

# %% [markdown]
# ## Keep it

# %%
from layerprune import load_pruned

pruner.save("digits-small")
again = load_pruned("digits-small", DigitsNet)
torch.equal(again.eval()(images[test]), pruned.eval()(images[test]))
