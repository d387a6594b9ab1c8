"""Every result that a user meets prints in one short line, without a tensor, and as a table where it has one."""

import io

import pytest
import torch
from rich.console import Console
from torch import nn

import layerprune
from layerprune import UniversalLayerPruner
from layerprune.checkpoint import verify
from layerprune.cost import compare_latency
from models.nets import ExampleModel, image, linear, randomised, rows

LINES = 100  # characters


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = linear(8, 16), linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results by name, of one model from construction to a saved folder."""
    batches = [rows(8, seed=seed) for seed in range(6)]
    chain = nn.Sequential(linear(8, 6), nn.Tanh(), linear(6, 9), nn.Tanh(), linear(9, 9), nn.Tanh(), linear(9, 8))
    model = randomised(nn.Sequential(linear(), *(Block() for _ in range(8)), chain, linear()))
    pruner = UniversalLayerPruner(model, calibration=batches)
    plan = pruner.plan(max_param_reduction=0.4, max_mac_reduction=0.6)
    pruned = pruner.prune(plan=plan)
    fidelity = layerprune.compare(model, pruned, batches[:2])
    latency = compare_latency({"original": model, "pruned": pruned}, pruner.inputs, rounds=2, block_s=0.001)
    folder = tmp_path_factory.mktemp("saved") / "pruned"
    pruner.save(folder)
    manifest = verify(folder)
    graph, group, removal = pruner.graph, pruner.groups[0], pruner.removals[0]
    projected = UniversalLayerPruner(randomised(chain), calibration=batches)
    projected.prune(max_param_reduction=0.9)
    scene, evidence = pruner._scored.scene, pruner._scored.evidence
    found = {
        "pruner": pruner,
        "plan": plan,
        "planned removal": plan.removals[0],
        "figure": plan.figures[0],
        "frontier point": plan.frontier[0],
        "rounds": plan.then(UniversalLayerPruner(pruned, example_inputs=rows()).plan(max_param_reduction=0.2)),
        "group": group,
        "layer info": group.lead_transform,
        "removal": removal,
        "cut": removal.cut,
        "lowering": removal.lowering,
        "graph": graph,
        "layer": graph.layers[3],
        "value": graph.values[1],
        "frame": graph.frames[0],
        "inputs": pruner.inputs,
        "batch": scene.batches[0],
        "scoring context": scene,
        "impact scores": evidence,
        "saving": pruner.saving(plan),
        "cost": pruner.saving(plan).before,
        "fidelity": fidelity,
        "estimate": fidelity.cosine,
        "latency": latency["original"],
        "ratio": latency["pruned"].ratio_to(latency["original"]),
        "repair report": pruner.repair_report,
        "refitted": pruner.repair_report.refitted[0],
        "held-out verdict": pruner.repair_report.verdict,
        "held out": pruner.repair_report.verdict.after,
        "projection report": projected.projection_report,
        "fitted": projected.projection_report.fitted[0],
        "manifest": manifest,
        "file record": next(iter(manifest.files.values())),
        "tensor record": manifest.tensors,
        "distillation": pruner.distill(batches, num_epochs=1),
        "unused": layerprune.proof.UnusedModule("head.0", 12),
        **{f"{edit.kind} edit": edit for edit in (*plan.edits, *projected._pruned_by[0].edits)},
    }
    return {"round header": found["rounds"].rounds[0], **found}


SHOWN = ("pruner", "plan", "rounds", "saving", "cost", "fidelity", "repair report", "projection report", "distillation")


def test_every_repr_is_a_short_line(results):
    for name, result in results.items():
        shown = repr(result)
        assert shown.startswith(f"{type(result).__name__}("), name
        assert len(shown) <= LINES, (name, shown)
        assert len(shown.splitlines()) == 1, name
        assert "tensor(" not in shown, name
        assert "object at 0x" not in shown, name
    assert all(len(repr(results[name])) > 30 for name in SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_reports_show_as_tables_and_keep_their_text(results, name):
    result = results[name]
    table, html = result.as_table(), result._repr_html_()
    stream = io.StringIO()
    Console(file=stream, width=300).print(result)
    for text in (table.title, *table.columns):
        assert text in stream.getvalue()
    assert html.startswith("<div")
    assert html.count("<tr>") == html.count("</tr>") > 1
    assert len(html) < 30_000
    if name != "pruner":
        assert len(str(result).splitlines()) > 1
        assert str(result) != repr(result)


def test_what_the_readme_prints_has_its_repr():
    torch.manual_seed(0)
    pruner = UniversalLayerPruner(ExampleModel(), example_inputs=image())
    plan = pruner.plan(max_param_reduction=0.4)
    assert repr(plan) == "PruningPlan(ExampleModel: 89,034 → 62,218 parameters (-30.1%), 1 removal, by exact)"
    group = next(group for group in pruner.groups if group.name == "conv2a")
    assert repr(group).startswith("Group(conv2a: 3 layers, 18,624 parameters, removable, impact 0.")
    assert repr(group.lead_transform) == "LayerInfo(conv2a: Conv2d (transform), 18,496 parameters, to 2×64×4×4)"
    assert repr(pruner.graph) == "LayerGraph(16 layers, 31 values, 89,034 parameters)"
