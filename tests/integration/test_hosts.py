"""Packages that build a model again from a config: docs/other-libraries.md, tried where they are installed."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from layerprune import UniversalLayerPruner, allow_marked_saving, load_pruned, save_pruned
from layerprune.errors import CheckpointError
from layerprune.plan import placed_plans, plans_of
from models.nets import linear, rows, run


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = linear(8, 16), linear(16, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def body():
    return nn.Sequential(linear(), *(Residual() for _ in range(3)), linear())


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_sentence_transformers_is_stopped_by_the_model_inside(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from transformers import BertConfig, BertModel, BertTokenizerFast

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
    BertModel(BertConfig(**sizes, vocab_size=32)).save_pretrained(tmp_path / "bert")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    encoder = sentence_transformers.SentenceTransformer(str(tmp_path / "bert"), device="cpu")
    ((place, inner),) = [(name, part) for name, part in encoder.named_modules() if isinstance(part, BertModel)]
    ids = {"input_ids": torch.arange(5, 7)[None], "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    pruner = UniversalLayerPruner(inner, example_inputs=ids, granularity="branch", projections=False)
    encoder.set_submodule(place, pruner.prune(groups=[g.name for g in pruner.groups if g.can_remove][:1]))
    assert [where for where, _ in placed_plans(encoder)] == [place]
    with pytest.raises(CheckpointError, match=r"BertModel.save_pretrained is refused"):
        encoder.save(str(tmp_path / "out"))


def test_diffusers_models_and_pipelines_are_refused_and_marked_ones_are_not_loaded(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    net = diffusers.UNet2DModel(**sizes, **blocks).eval()
    inputs = {"sample": torch.randn(1, 3, 8, 8), "timestep": torch.tensor(3)}
    pruner = UniversalLayerPruner(net, example_inputs=inputs, granularity="branch", projections=False)
    pruned = pruner.prune(max_param_reduction=0.3)
    with pytest.raises(CheckpointError, match=r"UNet2DModel.save_pretrained is refused"):
        pruned.save_pretrained(tmp_path / "net")
    with pytest.raises(CheckpointError, match=r"UNet2DModel.save_pretrained is refused"):
        diffusers.DDPMPipeline(pruned, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    allow_marked_saving(pruned).save_pretrained(tmp_path / "marked")
    with pytest.raises(OSError, match="no file named"):
        diffusers.UNet2DModel.from_pretrained(tmp_path / "marked")
    loaded = load_pruned(tmp_path / "marked", model=net)
    assert torch.equal(run(loaded, **inputs).sample, run(pruned, **inputs).sample)


def autoencoder(diffusers):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 16}
    return diffusers.AutoencoderKL(**sizes, **blocks), {"sample": torch.randn(1, 3, 16, 16)}


def conditional_unet(diffusers):
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    net = diffusers.UNet2DConditionModel(
        **sizes, down_block_types=down, up_block_types=up, cross_attention_dim=8, attention_head_dim=4
    )
    inputs = {"sample": torch.randn(1, 4, 8, 8), "timestep": torch.tensor(3)}
    return net, {**inputs, "encoder_hidden_states": torch.randn(1, 5, 8)}


def sd3_transformer(diffusers):
    sizes = {"sample_size": 8, "patch_size": 1, "in_channels": 4, "out_channels": 4, "pos_embed_max_size": 16}
    widths = {"joint_attention_dim": 16, "caption_projection_dim": 16, "pooled_projection_dim": 8}
    net = diffusers.SD3Transformer2DModel(**sizes, **widths, num_layers=3, attention_head_dim=8, num_attention_heads=2)
    inputs = {"hidden_states": torch.randn(1, 4, 8, 8), "timestep": torch.tensor([3.0])}
    return net, {
        **inputs,
        "encoder_hidden_states": torch.randn(1, 5, 16),
        "pooled_projections": torch.randn(1, 8),
    }


def flux_transformer(diffusers):
    sizes = {"patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16}
    widths = {"num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 8}
    net = diffusers.FluxTransformer2DModel(**sizes, **widths, axes_dims_rope=[4, 4, 8])
    inputs = {"hidden_states": torch.randn(1, 16, 4), "encoder_hidden_states": torch.randn(1, 5, 16)}
    ids = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3)}
    return net, {**inputs, **ids, "pooled_projections": torch.randn(1, 8), "timestep": torch.tensor([0.3])}


@pytest.mark.parametrize(
    ("make", "granularity"),
    [
        (autoencoder, "branch"),
        (sd3_transformer, "block"),
        *(
            pytest.param(make, granularity, marks=pytest.mark.reliability)
            for make in (conditional_unet, flux_transformer)
            for granularity in ("branch", "block")
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::layerprune.errors.ShortfallWarning")
def test_parts_of_image_generators_are_pruned_and_their_own_saving_is_refused(tmp_path, make, granularity):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net, inputs = make(diffusers)
    pruner = UniversalLayerPruner(net.eval(), example_inputs=inputs, granularity=granularity, projections=False)
    pruned = pruner.prune(max_param_reduction=0.3)
    assert count(pruned) < count(net)
    with pytest.raises(CheckpointError, match=rf"{type(net).__name__}.save_pretrained is refused: .*save_pruned\("):
        pruned.save_pretrained(tmp_path / "net")
    save_pruned(pruned, tmp_path / "small")
    loaded = load_pruned(tmp_path / "small", factory=lambda: make(diffusers)[0])
    assert torch.equal(run(loaded, **inputs).sample, run(pruned, **inputs).sample)
    if make is autoencoder:  # pipelines call its halves
        latent = pruned.encode(inputs["sample"]).latent_dist.mode()
        assert torch.equal(loaded.encode(inputs["sample"]).latent_dist.mode(), latent)
        assert torch.equal(loaded.decode(latent).sample, pruned.decode(latent).sample)


def test_segmentation_models_are_refused(tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch")
    net = smp.Unet("resnet18", encoder_weights=None).eval()
    pruner = UniversalLayerPruner(net, example_inputs=torch.randn(1, 3, 64, 64), projections=False)
    pruned = pruner.prune(max_param_reduction=0.2)
    with pytest.raises(CheckpointError, match=r"Unet.save_pretrained is refused"):
        pruned.save_pretrained(tmp_path / "net")


def test_lightning_trains_a_pruned_module_and_says_where_it_cannot_rebuild_it(tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")
    from torch.utils.data import DataLoader, TensorDataset

    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = body()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return self(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-3)

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    pruner = UniversalLayerPruner(Lit(), example_inputs=rows())
    pruned = pruner.prune(groups=["net.2.up"])
    assert type(pruned) is Lit
    trainer = lightning.Trainer(max_steps=2, default_root_dir=tmp_path, **quiet)
    trainer.fit(pruned, DataLoader(TensorDataset(torch.randn(8, 8)), batch_size=4))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(RuntimeError, match="Missing key"):
        Lit.load_from_checkpoint(tmp_path / "a.ckpt")
    save_pruned(pruned, tmp_path / "small")
    again = load_pruned(tmp_path / "small", factory=Lit)
    again.load_state_dict(torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"])
    assert torch.equal(run(again, rows()), run(pruned, rows()))


def test_stable_baselines_loads_a_pruned_policy_into_an_agent(tmp_path):
    sb3 = pytest.importorskip("stable_baselines3")
    import gymnasium
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

    class World(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (8,), dtype="float32")
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.zeros(8, "float32"), {}

        def step(self, action):
            return np.full(8, 0.1, "float32"), 1.0, True, False, {}

    class Features(BaseFeaturesExtractor):
        def __init__(self, space):
            super().__init__(space, 8)
            self.net = body()

        def forward(self, x):
            return self.net(x)

    def make():
        told = {"features_extractor_class": Features}
        return sb3.PPO("MlpPolicy", World(), policy_kwargs=told, n_steps=8, batch_size=4, n_epochs=1, device="cpu")

    agent, seen = make(), torch.ones(1, 8)
    agent.policy = UniversalLayerPruner(agent.policy, example_inputs=seen).prune(groups=["features_extractor.net.2.up"])
    agent.learn(8)
    agent.save(tmp_path / "agent.zip")
    save_pruned(agent.policy, tmp_path / "policy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert count(sb3.PPO.load(tmp_path / "agent.zip", device="cpu").policy) > count(agent.policy)  # as documented
    again = make()
    again.policy = load_pruned(tmp_path / "policy", model=again.policy)
    again.set_parameters(tmp_path / "agent.zip")
    for one, other in zip(again.policy(seen, deterministic=True), agent.policy(seen, deterministic=True), strict=True):
        assert torch.equal(one, other)


def test_ultralytics_trains_the_pruned_network_by_a_trainer_that_hands_it_out(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    pytest.importorskip("ultralytics")
    import cv2
    import yaml
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import DetectionTrainer

    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / kind / part).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "images" / part / "0.jpg"), np.random.randint(0, 255, (64, 64, 3), dtype="uint8"))
        (tmp_path / "labels" / part / "0.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    places = {"path": str(tmp_path), "train": "images/train", "val": "images/val", "names": {0: "a"}}
    blocks = [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 2, "C2f", [16, True]]]
    head = [[[1, 2], 1, "Detect", ["nc"]]]
    tiny = {"nc": 1, "scales": {"n": [1.0, 1.0, 64]}, "backbone": blocks, "head": head}
    for name, content in (("data", places), ("tiny", tiny)):
        Path(tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))

    yolo = YOLO(str(tmp_path / "tiny.yaml"), task="detect")
    whole = count(yolo.model)
    pruner = UniversalLayerPruner(yolo.model.eval(), example_inputs=torch.zeros(1, 3, 64, 64), projections=False)
    pruned = pruner.prune(max_param_reduction=0.3)
    assert count(pruned) < whole
    told = {"epochs": 1, "imgsz": 64, "batch": 2, "workers": 0, "plots": False, "device": "cpu", "amp": False}
    told |= {"data": str(tmp_path / "data.yaml"), "project": str(tmp_path / "runs"), "verbose": False}
    yolo.train(trainer=type("Pruned", (DetectionTrainer,), {"get_model": lambda *_, **__: pruned}), **told)
    assert count(yolo.model) == count(pruned)
    assert plans_of(yolo.model) == plans_of(pruned)
