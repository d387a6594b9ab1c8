"""A Lightning module is pruned while it is trained; optimizer, schedulers and checkpoints follow."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from layerprune import PruningPlan, load_pruned, save_pruned
from layerprune.errors import IntegrationError
from layerprune.integrations import Schedule

pl = pytest.importorskip("lightning.pytorch")
sklearn = pytest.importorskip("sklearn.datasets")
integration = pytest.importorskip("layerprune.integrations.lightning", exc_type=ImportError)
ModelCheckpoint = pl.callbacks.ModelCheckpoint
PruningCallback, load_checkpoint = integration.PruningCallback, integration.load_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def network(width=8, depth=3):
    stem = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(width * 4, 10)]
    return nn.Sequential(*stem, *(Block(width) for _ in range(depth)), *head)


class Classifier(pl.LightningModule):
    def __init__(self, optimizer=torch.optim.AdamW):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.optimizer, self.losses = network(), optimizer, []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(float(loss))
        self.log("loss", loss)
        return loss

    def test_step(self, batch, batch_idx):
        self.log("test_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        decayed = [p for p in self.parameters() if p.dim() > 1]
        others = [p for p in self.parameters() if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        made = self.optimizer(groups, lr=5e-3)
        return [made], [{"scheduler": torch.optim.lr_scheduler.StepLR(made, 10, 0.9), "interval": "step"}]


def digits(num=384):
    data = sklearn.load_digits()
    x, y = torch.tensor(data.images[:num], dtype=torch.float32)[:, None] / 16, torch.tensor(data.target[:num])
    return DataLoader(TensorDataset(x, y), batch_size=32)


def fit(module, callback, tmp_path, *, ckpt_path=None, **options):
    options = {"max_steps": 60, "max_epochs": None, **options}
    callbacks = [callback, *options.pop("callbacks", [])]
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=tmp_path,
        logger=options.pop("logger", False),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in callbacks),
        callbacks=callbacks,
        **options,
    )
    trainer.fit(module, digits(), ckpt_path=ckpt_path)
    return trainer


TWO_ROUNDS = Schedule(start=20, every=20, num_rounds=2, final_share=0.6)
CHEAP = {"criterion": "influence", "repair": None, "num_batches": 2}


def assert_follows(trainer, module):
    """The optimizer holds the module's parameters, each in its group and with state of its shape."""
    (optimizer,) = trainer.optimizers
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in module.parameters()}
    assert set(optimizer.state) == set(held)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    assert all(
        (p.dim() > 1) == (group["weight_decay"] > 0) for group in optimizer.param_groups for p in group["params"]
    )
    for parameter, state in optimizer.state.items():
        moments = [value for value in state.values() if torch.is_tensor(value) and value.numel() > 1]
        assert moments
        assert all(value.shape == parameter.shape for value in moments)


@pytest.mark.parametrize("name", ["", pytest.param("net", marks=pytest.mark.reliability)])
def test_a_module_is_pruned_in_two_rounds_trains_on_and_is_saved_as_one(tmp_path, name):
    module = Classifier()
    size = sum(p.numel() for p in module.parameters())
    callback = PruningCallback(TWO_ROUNDS, module=name, num_batches=4)
    trainer = fit(module, callback, tmp_path)
    assert [record.time for record in callback.records] == [20, 40]
    assert all(record.num_params_after < record.num_params_before for record in callback.records)
    assert callback.records[0].num_params_before == size
    assert callback.records[1].num_params_after == sum(p.numel() for p in module.parameters()) >= 0.4 * size
    assert callback.records[1].macs_after < callback.records[0].macs_before
    assert trainer.callback_metrics["pruning/num_params"] == callback.records[1].num_params_after
    assert trainer.callback_metrics["pruning/round"] == 2
    assert_follows(trainer, module)
    assert min(module.losses[-5:]) < min(module.losses[35:40]) < min(module.losses[:5])
    part = module.net if name else module
    plan = PruningPlan.of(part)
    assert {removal.round for removal in plan.removals} == {1, 2}
    assert len(plan.parts) == 2
    save_pruned(part, tmp_path / "small")
    loaded = load_pruned(tmp_path / "small", factory=network if name else Classifier)
    x = next(iter(digits()))[0]
    assert torch.equal(loaded.eval()(x), part.eval()(x))
    assert module.trainer is trainer


@pytest.mark.parametrize("optimizer", [lambda ps, lr: torch.optim.SGD(ps, lr=lr, momentum=0.9)])
def test_rounds_at_the_end_of_epochs_and_with_any_optimizer(tmp_path, optimizer):
    module = Classifier(optimizer)
    schedule = Schedule(start=1, every=2, num_rounds=2, share=0.3, unit="epoch")
    callback = PruningCallback(schedule, granularity="block", **CHEAP)
    trainer = fit(module, callback, tmp_path, max_epochs=5, max_steps=-1)
    assert [record.time for record in callback.records] == [1, 3]
    assert_follows(trainer, module)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(5e-3 * 0.9**6)
    assert callback._recorder is None, "nothing is recorded after the last round"
    assert not module._forward_pre_hooks


def test_pruning_waits_for_the_optimizer_step_where_gradients_are_added_up(tmp_path):
    module, times = Classifier(), []

    class Watching(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            times.append((batch_idx + 1, sum(p.numel() for p in pl_module.parameters())))

    callback = PruningCallback(Schedule(start=2, share=0.4), **CHEAP)
    fit(module, callback, tmp_path, accumulate_grad_batches=3, max_steps=4, callbacks=[Watching()])
    sizes = [size for _, size in times]
    assert [number for (number, size), before in zip(times[1:], sizes, strict=False) if size != before] == [6]


@pytest.mark.reliability
def test_bf16_and_scheduled_learning_rates_go_on(tmp_path):
    module = Classifier()
    callback = PruningCallback(TWO_ROUNDS, **CHEAP)
    trainer = fit(module, callback, tmp_path, precision="bf16-mixed")
    assert len(callback.records) == 2
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(5e-3 * 0.9**6)
    assert_follows(trainer, module)


def test_a_checkpoint_holds_the_plan_and_is_resumed_by_a_fresh_module(tmp_path):
    def saving():
        return ModelCheckpoint(tmp_path / "kept", every_n_train_steps=30, save_top_k=-1, filename="{step}")

    whole = Classifier()
    fit(whole, first := PruningCallback(TWO_ROUNDS, **CHEAP), tmp_path, callbacks=[saving()])
    path = str(tmp_path / "kept" / "step=30.ckpt")
    held = torch.load(path, weights_only=True)["callbacks"]
    (text,) = held["PruningCallback"]["plans"]
    assert json.loads(text)["num_params_after"] == first.records[0].num_params_after
    resumed = Classifier()
    callback = PruningCallback(TWO_ROUNDS, **CHEAP)
    trainer = fit(resumed, callback, tmp_path, ckpt_path=path)
    assert [record.time for record in callback.records] == [20, 40]
    assert callback.records[0] == first.records[0]
    assert_follows(trainer, resumed)
    assert len(resumed.losses) == 30
    assert len(PruningPlan.of(resumed).parts) == 2
    assert "on_load_checkpoint" not in vars(resumed)
    fresh = Classifier()
    assert trainer.test(fresh, digits(), ckpt_path=path, verbose=False)
    assert PruningPlan.of(fresh) == PruningPlan.from_json(text)
    loaded = load_checkpoint(path, Classifier())
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), fresh.parameters(), strict=True))


@pytest.mark.reliability
def test_a_resumed_run_is_what_the_run_without_a_break_was(tmp_path):
    saving = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=24, save_top_k=-1, filename="{step}")
    whole = Classifier()
    fit(whole, PruningCallback(TWO_ROUNDS, calibration=list(digits(64)), **CHEAP), tmp_path, callbacks=[saving])
    resumed = Classifier()
    path = str(tmp_path / "kept" / "step=24.ckpt")
    fit(resumed, PruningCallback(TWO_ROUNDS, calibration=list(digits(64)), **CHEAP), tmp_path, ckpt_path=path)
    assert resumed.losses == whole.losses[24:]
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


@pytest.mark.reliability
def test_a_checkpoint_of_fewer_rounds_is_refused_by_a_module_that_has_more(tmp_path):
    saving = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=30, save_top_k=-1, filename="{step}")
    module = Classifier()
    trainer = fit(module, PruningCallback(TWO_ROUNDS, **CHEAP), tmp_path, callbacks=[saving])
    with pytest.raises(IntegrationError, match=r"after 1 rounds .* pruned in another way \(2 rounds\)"):
        trainer.test(module, digits(), ckpt_path=str(tmp_path / "kept" / "step=30.ckpt"), verbose=False)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_averages_of_weights_are_refused_before_training(tmp_path):
    with pytest.raises(IntegrationError, match="StochasticWeightAveraging keeps a copy of the unpruned module"):
        fit(
            Classifier(),
            PruningCallback(TWO_ROUNDS, **CHEAP),
            tmp_path,
            callbacks=[pl.callbacks.StochasticWeightAveraging(1e-3)],
        )


def test_several_devices_are_refused(tmp_path):
    trainer = pl.Trainer(accelerator="cpu", devices=2, logger=False, default_root_dir=tmp_path)
    with pytest.raises(IntegrationError, match="runs on one device, and this trainer has 2"):
        PruningCallback(TWO_ROUNDS).setup(trainer, Classifier(), "fit")


@pytest.mark.reliability  # opens a process group
def test_a_strategy_that_wraps_the_module_is_refused(tmp_path):
    with pytest.raises(IntegrationError, match="DDPStrategy wraps the module"):
        fit(Classifier(), PruningCallback(TWO_ROUNDS), tmp_path, strategy="ddp")


def test_an_optimizer_that_cannot_be_rebuilt_and_a_wrong_name_are_refused_before_training(tmp_path):
    class Lbfgs(Classifier):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(IntegrationError, match="LBFGS keeps parameters in '_params'"):
        fit(Lbfgs(), PruningCallback(TWO_ROUNDS, **CHEAP), tmp_path)
    with pytest.raises(IntegrationError, match="has no module 'nett'"):
        fit(Classifier(), PruningCallback(TWO_ROUNDS, module="nett"), tmp_path)


def test_a_checkpoint_without_the_callback_is_refused(tmp_path):
    torch.save({"callbacks": {}, "state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(IntegrationError, match="holds no state of a PruningCallback"):
        load_checkpoint(str(tmp_path / "other.ckpt"), Classifier())
