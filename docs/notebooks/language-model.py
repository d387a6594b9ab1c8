# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # A small language model
#
# A Llama of six layers learns docstrings, byte by byte, for about a minute. Then whole layers leave, so that
# plain transformers loads the result.

# %%
import inspect
import math

import numpy
import scipy.signal
import scipy.stats
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.manual_seed(0)
torch.set_num_threads(1)

text = "\n".join(
    inspect.getdoc(getattr(module, name)) or ""
    for module in (numpy, scipy.stats, scipy.signal)
    for name in sorted(dir(module))
)
tokens = torch.tensor(list(text.encode("ascii", "ignore")))
CONTEXT = 64
sequences = tokens[: len(tokens) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
sequences = sequences[torch.randperm(len(sequences))]
train, calibration, test = sequences[:-256], sequences[-256:-128], sequences[-128:]
len(train)

# %%
config = LlamaConfig(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=176,
    num_hidden_layers=6,
    num_attention_heads=4,
    max_position_embeddings=CONTEXT,
)
model = LlamaForCausalLM(config)
steps = 400
optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, betas=(0.9, 0.95))
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps, pct_start=0.1)
for _ in range(steps):
    batch = train[torch.randint(len(train), (16,))]
    optimizer.zero_grad()
    model(input_ids=batch, labels=batch).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
model.eval()


def perplexity(net):
    with torch.no_grad():
        logits = net(input_ids=test).logits[:, :-1]
    return math.exp(F.cross_entropy(logits.reshape(-1, logits.shape[-1]), test[:, 1:].reshape(-1)))


f"{perplexity(model):.2f} per byte"

# %% [markdown]
# ## Which layers matter least
#
# `granularity="block"` lets whole decoder layers leave only.

# %%
from layerprune import UniversalLayerPruner

batches = [{"input_ids": part, "use_cache": False} for part in calibration.split(16)]
pruner = UniversalLayerPruner(model, calibration=batches, granularity="block", progress=False)
plan = pruner.plan(max_param_reduction=0.5)
plan

# %%
axes = pruner.plot_frontier()

# %%
pruned = pruner.prune(plan=plan)
pruner.repair_report

# %%
print(f"original            {perplexity(model):.3f}")
print(f"without repair      {perplexity(plan.apply(model)):.3f}")
print(f"repaired            {perplexity(pruned):.3f}")

# %% [markdown]
# ## Distil
#
# A short training against the original, without labels:

# %%
data = [{"input_ids": part, "use_cache": False} for part in train[:1024].split(16)]
pruner.distill(data, num_epochs=2)

# %%
print(f"distilled           {perplexity(pruner.model):.3f}")

# %%
from IPython.display import Markdown

pruner.report("language-model-report.html")
Markdown("[Open the report, with the curve of the training](language-model-report.html)")

# %% [markdown]
# ## Plain transformers loads it

# %%
pruner.model.save_pretrained("llama-small")
again = LlamaForCausalLM.from_pretrained("llama-small").eval()
with torch.no_grad():
    same = torch.equal(again(input_ids=test).logits, pruner.model(input_ids=test).logits)
again.config.num_hidden_layers, same
