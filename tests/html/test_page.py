"""The report page as text: well formed, everything escaped, nothing outside of the file, as large as it may be."""

import dataclasses
import json
import re
from collections import OrderedDict

import pytest
import torch
from markup_check import Elements
from torch import nn

from layerprune import PruningPlan, UniversalLayerPruner, compare, save_pruned
from layerprune.errors import PlanError, ReportError
from layerprune.html import ReportData, Reproduction, page_of, write_page
from layerprune.html.heat_strip import block_rows, split_name
from layerprune.html.markup import Markup, element, escaped, script_json
from layerprune.html.plot import Axis, thinned
from layerprune.overview import report_folder
from models.nets import Damped, ExampleModel, Net, image, linear, randomised, rows
from torchvision_ops import declare_missing_ops

MOST_BYTES = 300_000
HOSTILE = """</script><img src=x onerror="boom()"><!-- '&"""


def batches(num: int = 6) -> list[torch.Tensor]:
    return [rows(16, seed=seed) for seed in range(num)]


def damped(num: int = 1) -> nn.Module:
    return randomised(nn.Sequential(linear(), *(Damped() for _ in range(num)), linear()))


@pytest.fixture(scope="module")
def planned() -> UniversalLayerPruner:
    pruner = UniversalLayerPruner(randomised(ExampleModel()), example_inputs=image())
    pruner.plan(max_param_reduction=0.4)
    return pruner


@pytest.fixture(scope="module")
def repaired() -> tuple[UniversalLayerPruner, ReportData]:
    """A network that was pruned, repaired, compared, and distilled for a few steps."""
    pruner = UniversalLayerPruner(damped(), calibration=batches(), protect=["0"], seed=3)
    original = pruner.model
    pruner.prune(max_param_reduction=0.4)
    pruner.distill(batches(), num_epochs=2, progress=False)
    return pruner, pruner.report_data(fidelity=compare(original, pruner.model, batches(3)), origin="damped")


def test_a_page_is_well_formed_at_each_stage(planned, repaired):
    before = UniversalLayerPruner(randomised(ExampleModel()), example_inputs=image())
    for data in (before.report_data(), planned.report_data(), repaired[1]):
        page = Elements(page_of(data))
        assert page.faults == []
        assert page.counts["main"] == page.counts["h1"] == page.counts["head"] == 1


def test_equal_data_make_equal_pages(planned):
    assert page_of(planned.report_data()) == page_of(planned.report_data())


def test_the_page_refers_to_nothing_outside_of_itself(repaired):
    page = page_of(repaired[1])
    assert "://" not in page
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) == {"#"}
    for tag, given in Elements(page).attributes:
        assert not {"src", "srcset", "action", "data", "poster"} & given.keys(), tag
        assert (given.get("href") or "#").startswith("#")
    policy = next(g["content"] for t, g in Elements(page).attributes if t == "meta" and "http-equiv" in g)
    assert policy.startswith("default-src 'none'; ")


def test_sections_stand_in_the_order_of_a_reader(repaired):
    ids = [given["id"] for tag, given in Elements(page_of(repaired[1])).attributes if tag == "section"]
    wanted = ["figures", "groups", "frontier", "removals", "refusals", "repair", "distillation", "notes", "reproduce"]
    assert [name for name in ids if name in wanted] == wanted


# ---- what is shown ---------------------------------------------------------------------------------------------------


def test_before_a_plan_the_page_says_what_could_leave():
    data = UniversalLayerPruner(randomised(ExampleModel()), example_inputs=image()).report_data()
    page = page_of(data)
    assert "Can leave now, together: 68,800 (77.3%) parameters" in page
    assert "No plan was made yet." in page
    assert ">pruned</th>" not in page
    assert 'id="plan"' not in page


def test_figures_are_those_of_the_printed_plan(planned):
    plan = planned.plan(max_param_reduction=0.4)
    page, printed = page_of(planned.report_data()), planned.render_plan()
    assert f"{plan.num_params_before:,}" in page
    assert f"{plan.num_params_after:,}" in page
    for label, *cells in planned.saving(plan).rows():
        if cells[0] != "—":
            assert f'<th scope="row">{label}</th>' in page
            assert all(f'<td class="num">{cell}</td>' in page for cell in cells)
    impact = re.search(r"Lead Transform: conv2b.*?Impact Score: (\S+)", printed, re.DOTALL)[1]
    removes = re.search(r"Lead Transform: conv2b.*?Removes: (.*?)\n", printed, re.DOTALL)[1]
    row = re.search(r"<tr[^>]*>(?:(?!</tr>).)*>conv2b</button>.*?</tr>", page, re.DOTALL)[0]
    assert impact in row
    assert removes in row


def test_a_repaired_and_distilled_model_shows_both(repaired):
    pruner, data = repaired
    page = page_of(data)
    assert str(pruner.repair_report.verdict).splitlines()[0].split(",")[0] in page
    assert all(one.name in page for one in pruner.repair_report.refitted)
    assert f"{pruner.distillation.before:.4g} → {pruner.distillation.after:.4g}" in page
    assert "relative L2 of the output" in page
    kept = f"{pruner.repair_report.verdict.after.kept:.1%}"
    when = ", before the distillation" if pruner.distillation.kept else ""
    after = pruner.repair_report.verdict.after
    assert f"; {kept} of the output is kept on {after.num_samples} held-out samples{when}." in page
    assert f'<dd class="big">{kept}</dd>' in page
    assert data.repair is pruner.repair_report


def test_a_plan_that_was_not_carried_out_has_no_repair():
    pruner = UniversalLayerPruner(damped(), calibration=batches())
    pruner.prune(max_param_reduction=0.4)
    pruner.plan(max_param_reduction=0.2)
    assert pruner.report_data().repair is None
    assert pruner.report_data().plan.max_param_reduction == 0.2


def test_the_sets_of_the_frontier_weigh_what_they_say(planned):
    data = planned.report_data()
    total = planned.graph.num_params
    best = {frozenset(r.groups): r for r in planned.removals}
    assert [s.is_plan for s in data.sets].count(True) == 1
    assert [s.reduction for s in data.sets] == sorted(s.reduction for s in data.sets)
    alone = [each for each in data.sets if frozenset(each.groups) in best]
    assert alone
    for each in alone:
        removal = best[frozenset(each.groups)]
        assert each.reduction == pytest.approx(removal.num_params / total)
        assert each.impact == pytest.approx(removal.impact)
    points = [(point.reduction, point.impact) for point in planned.frontier]
    assert points == [(s.reduction, s.impact) for s in data.sets if not s.is_plan]


def test_the_code_on_the_page_makes_the_same_plan(repaired):
    _, data = repaired
    code = data.reproduction.code
    assert "UniversalLayerPruner(model, protect=('0',), calibration=batches, seed=3)" in code
    plan = "\n".join(line for line in code.splitlines() if "prune(" not in line)
    names = {"model": damped(), "batches": batches()}
    exec(plan, names)
    again = names["plan"]
    assert again.removals == data.plan.removals
    assert data.reproduction.fingerprint == data.plan.fingerprint


def test_the_command_on_the_page_is_one_that_the_program_takes(tmp_path):
    source = tmp_path / "net.py"
    source.write_text("from models.nets import ExampleModel, randomised\n\nnet = lambda: randomised(ExampleModel())\n")
    pruner = UniversalLayerPruner(randomised(ExampleModel()), protect=["conv3"], granularity="branch")
    plan = pruner.plan(max_mac_reduction=0.5)
    command = pruner.report_data(origin=f"{source}:net").reproduction.command
    from typer.testing import CliRunner

    from layerprune.cli import app

    done = CliRunner().invoke(app, [*command.split()[1:-1], str(tmp_path / "pruned")])
    assert done.exit_code == 0, done.output
    assert PruningPlan.load(tmp_path / "pruned").removals == plan.removals


def test_options_that_the_program_lacks_give_no_command():
    pruner = UniversalLayerPruner(randomised(ExampleModel()), example_inputs=image(), renumber=True)
    pruner.plan(max_param_reduction=0.4)
    assert pruner.report_data().reproduction.command == ""
    assert "renumber=True" in pruner.report_data().reproduction.code


def test_the_plan_in_the_page_is_the_plan(planned):
    text = re.search(
        r'<script type="application/json" id="plan">(.*?)</script>', page_of(planned.report_data()), re.DOTALL
    )
    assert PruningPlan.from_json(text[1]) == planned.report_data().plan


def test_a_folder_is_reported_without_its_model(planned, tmp_path):
    planned.prune(max_param_reduction=0.4)
    save_pruned(planned.model, tmp_path / "pruned", figures={"accuracy": 0.75})
    page = report_folder(tmp_path / "pruned", tmp_path / "report.html").read_text(encoding="utf-8")
    assert Elements(page).faults == []
    assert f"{planned.model.conv1.weight.numel():,}" not in page  # nothing of the model is known
    assert "conv2a" in page
    assert "accuracy" in page
    assert "1 group leaves: 89 k → 62.2 k parameters (-30.1%)" in page
    assert "load_pruned(" in page
    file = report_folder(tmp_path / "pruned" / "plan.json", tmp_path / "other.html").read_text(encoding="utf-8")
    assert "PruningPlan.load(" in file


def test_with_its_model_a_folder_has_the_whole_report(planned, tmp_path):
    planned.prune(max_param_reduction=0.4)
    save_pruned(planned.model, tmp_path / "pruned")
    other = UniversalLayerPruner(randomised(ExampleModel()), example_inputs=image())
    page = other.report(tmp_path / "new folder" / "report.html", plan=tmp_path / "pruned").read_text(encoding="utf-8")
    assert 'id="groups-table"' in page


def test_what_is_no_plan_is_refused(tmp_path):
    with pytest.raises(ReportError, match="there is no folder or file"):
        report_folder(tmp_path / "nothing", tmp_path / "report.html")
    data = ReportData(model="M", num_params=1, impact_unit="", reproduction=Reproduction(code=""))
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="cannot be written"):
        write_page(data, tmp_path / "file" / "report.html")
    with pytest.raises(ReportError, match="cannot be written"):
        write_page(data, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.slow
def test_a_resnet_50_takes_less_than_300_kb():
    declare_missing_ops()
    import torchvision

    pruner = UniversalLayerPruner(torchvision.models.resnet50().eval(), example_inputs=image(1, size=64))
    pruner.plan(max_param_reduction=0.3)
    page = page_of(pruner.report_data())
    assert Elements(page).faults == []
    assert len(page.encode()) <= MOST_BYTES


@pytest.mark.reliability
def test_a_llama_of_32_layers_takes_less_than_300_kb():
    """With impacts and intervals, which the meta device does not have."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 256}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=32, **sizes)).eval()
    batches = [{"input_ids": torch.randint(0, 256, (2, 8))} for _ in range(2)]
    pruner = UniversalLayerPruner(model, calibration=batches, criterion="influence")
    pruner.plan(max_param_reduction=0.3, strategy="exact")
    data = pruner.report_data()
    assert any(facts.interval for facts in data.facts.values())
    assert len(page_of(data).encode()) <= MOST_BYTES


@pytest.mark.reliability
def test_a_llama_of_32_layers_without_values_takes_less_than_300_kb():
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        pruner = UniversalLayerPruner(LlamaForCausalLM(LlamaConfig(num_hidden_layers=32)).eval())
    pruner.plan(max_param_reduction=0.3)
    assert len(page_of(pruner.report_data()).encode()) <= MOST_BYTES


# ---- untrusted text --------------------------------------------------------------------------------------------------


def test_hostile_names_stay_text(tmp_path):
    branch = Damped()
    hostile = randomised(nn.Sequential(OrderedDict([("a", linear()), (HOSTILE, branch), ("</title><b>", linear())])))
    hostile.__class__ = type("</style><script>boom()", (nn.Sequential,), {})
    pruner = UniversalLayerPruner(hostile, example_inputs=rows(), protect_io=False)
    pruner.plan(max_param_reduction=0.5)
    data = dataclasses.replace(pruner.report_data(origin=HOSTILE), notes=(HOSTILE, "\ud800\x00 half a pair"))
    page = Elements(write_page(data, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.faults == []
    assert page.counts["script"] == 4  # two of JSON, two that run
    assert page.counts["img"] == page.counts["b"] == 0
    assert all(not name.startswith("on") for _, given in page.attributes for name in given)
    assert HOSTILE in page.text_of("li")
    assert HOSTILE in page.text_of("button")
    assert json.loads(page.texts_of_ids["data"])["groups"]


def test_markup_escapes_text_and_keeps_markup():
    assert element("p", "<b>", Markup("<i>x</i>"), title='"', hidden=True, id=None) == (
        '<p title="&quot;" hidden>&lt;b&gt;<i>x</i></p>'
    )
    assert json.loads(script_json(json.dumps(HOSTILE))) == HOSTILE
    assert "<" not in script_json(json.dumps(HOSTILE))


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_axes_have_round_ticks_and_turn_logarithmic_over_orders():
    assert Axis.over([0.0, 9.0]).ticks() == [0.0, 2.0, 4.0, 6.0, 8.0]
    wide = Axis.over([0.003, 3.0])  # from 0.002 to 3.6
    assert wide.is_log
    assert wide.ticks() == [0.01, 0.1, 1.0]
    assert wide.share(0.002) == 0.0
    assert wide.share(0.02) == pytest.approx(1 / 3.2553, rel=1e-3)  # log10 of 3.6 / 0.002
    assert Axis.over([2.0]).share(2.0) == pytest.approx(1 / 1.06)
    assert not Axis.over([-1.0, 100.0]).is_log


def test_many_points_become_means_of_neighbours():
    points = thinned([(float(step), 2.0 * step) for step in range(1000)], most=10)
    assert len(points) == 10
    assert points[0] == (49.5, 99.0)


def test_blocks_that_repeat_are_rows_of_the_heat_strip():
    assert split_name("model.layers.3.mlp.up") == ("model.layers.3", "mlp.up")
    assert split_name("layer1.0.downsample.0") == ("layer1.0", "downsample.0")
    assert split_name("features.1.0.mlp.0") == ("features.1.0", "mlp.0")
    assert split_name("features.3") is None
    pruner = UniversalLayerPruner(damped(4), example_inputs=rows())
    found, columns = block_rows(pruner.groups)
    names = {name: [pruner.groups[number].name for number in numbers] for name, numbers in found.items()}
    assert columns == ["1", "2", "3", "4"]
    assert all(len(row) == 4 for row in names.values())
    assert all(
        name == f"{column}.{row}" for row, some in names.items() for column, name in zip(columns, some, strict=True)
    )


def test_unknown_impacts_give_no_frontier_and_no_bars():
    with torch.device("meta"):
        pruner = UniversalLayerPruner(nn.Sequential(linear(), Damped(), linear()))
    pruner.plan(max_param_reduction=0.5)
    data = pruner.report_data()
    page = page_of(data)
    assert Elements(page).faults == []
    assert 'id="frontier"' not in page
    assert "impacts are not known" in page
    assert [each.is_plan for each in data.sets] == [True]


# ---- other plans -----------------------------------------------------------------------------------------------------


def test_named_groups_are_made_again_from_the_file_of_the_plan(planned):
    plan = planned.plan(groups=["conv2b"])
    made = planned.report_data().reproduction
    assert 'prune(plan="plan.json")' in made.code
    assert "pruner.plan(" not in made.code
    assert made.command == ""
    assert "1 of 5 groups leave" in page_of(planned.report_data(plan))


def test_a_model_that_nothing_can_leave_is_reported_with_the_reasons():
    pruner = UniversalLayerPruner(nn.Sequential(linear(8, 4), nn.ReLU(), linear(4, 2)), example_inputs=rows())
    assert "Nothing can leave now." in page_of(pruner.report_data())
    plan = pruner.plan(max_param_reduction=0.5)
    page = page_of(pruner.report_data())
    assert plan.shortfall.startswith("nothing can be removed: ")
    assert escaped(f"N{plan.shortfall[1:]}.") in page
    assert "What stays, and why" in page
    assert Elements(page).faults == []


def test_groups_that_need_data_are_counted_by_that_reason():
    model = nn.Sequential(linear(), linear(8, 6), nn.ReLU(), linear(6, 5), linear(5))
    page = page_of(UniversalLayerPruner(randomised(model), example_inputs=rows()).report_data())
    assert "needs calibration data" in page
    assert "<strong>needs calibration</strong>" in page


def test_a_model_pruned_in_place_is_no_longer_there_to_report_on():
    pruner = UniversalLayerPruner(randomised(ExampleModel()), example_inputs=image())
    pruner.prune(max_param_reduction=0.4, inplace=True)
    with pytest.raises(PlanError, match="pruned in place"):
        pruner.report_data()


def test_unused_modules_are_a_plan_without_groups():
    net = Net(lambda net, x: net.b(net.a(x)), a=linear(), b=linear(), spare=linear())
    pruner = UniversalLayerPruner(randomised(net), example_inputs=rows())
    pruner.plan(unused=True)
    data = pruner.report_data()
    assert "plan(unused=True)" in data.reproduction.code
    assert Elements(page_of(data)).faults == []
