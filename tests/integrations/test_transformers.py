"""A model of transformers' Trainer is pruned while it is trained; optimizer, log and checkpoints follow."""

import json

import pytest
import torch

from layerprune import PruningPlan, load_pruned, save_pruned
from layerprune.errors import IntegrationError
from layerprune.integrations import Schedule

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
integration = pytest.importorskip("layerprune.integrations.transformers", exc_type=ImportError)
PruningCallback = integration.PruningCallback

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "max_position_embeddings": 16}
CHEAP = {"criterion": "influence", "repair": None, "num_batches": 2}
TWO_ROUNDS = Schedule(start=10, every=10, num_rounds=2, final_share=0.5)
ONE_ROUND = Schedule(start=8, share=0.4)


def language_model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, num_hidden_layers=4, vocab_size=16)
    return transformers.LlamaForCausalLM(config)


def classifier():
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, num_hidden_layers=2, vocab_size=16, num_labels=2)
    return transformers.BertForSequenceClassification(config)


def counting(num=256):
    """Sequences that count upwards: the next token is known."""
    starts = torch.arange(num) % 16
    ids = (starts[:, None] + torch.arange(8)) % 16
    return [{"input_ids": row, "labels": row} for row in ids]


def halves(num=256):
    """Whether the first token is of the lower half."""
    return [{"input_ids": one["input_ids"], "labels": one["input_ids"][0] // 8} for one in counting(num)]


def trainer_of(model, data, folder, **options):
    options = {"max_steps": 30, "save_strategy": "no", "learning_rate": 1e-2, "logging_steps": 1, **options}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=16,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        weight_decay=0.01,
        seed=1,
        **options,
    )
    return transformers.Trainer(model=model, args=arguments, train_dataset=data)


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_follows(trainer):
    model, optimizer = trainer.model, trainer.optimizer.optimizer
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert set(optimizer.state) == set(held)
    for parameter, state in optimizer.state.items():
        assert all(value.shape == parameter.shape for key, value in state.items() if key != "step")
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.01]


def test_a_language_model_loses_whole_layers_in_two_rounds_and_transformers_loads_what_is_left(tmp_path):
    model = language_model()
    trainer = trainer_of(model, counting(), tmp_path)
    callback = PruningCallback(TWO_ROUNDS, granularity="block", **CHEAP).attach(trainer)
    trainer.train()
    assert [record.time for record in callback.records] == [10, 20]
    assert model.config.num_hidden_layers == len(model.model.layers) == 2
    assert_follows(trainer)
    logged = [entry for entry in trainer.state.log_history if "pruning/num_params" in entry]
    assert [(entry["step"], entry["pruning/num_params"]) for entry in logged] == [
        (record.time, record.num_params_after) for record in callback.records
    ]
    found = losses(trainer)
    assert found[-1] < found[9] / 2 < found[0] / 2
    assert len(PruningPlan.of(model).parts) == 2
    ids = counting(2)[0]["input_ids"][None]
    expected = model.eval()(ids).logits
    trainer.save_model(str(tmp_path / "vanilla"))
    vanilla = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "vanilla")
    assert torch.equal(vanilla.eval()(ids).logits, expected)
    save_pruned(model, tmp_path / "small")
    assert torch.equal(load_pruned(tmp_path / "small", factory=language_model).eval()(ids).logits, expected)


def test_a_classifier_loses_branches_and_its_checkpoints_are_resumed(tmp_path):
    trainer = trainer_of(classifier(), halves(), tmp_path / "whole", save_strategy="steps", save_steps=9, max_steps=14)
    callback = PruningCallback(ONE_ROUND, **CHEAP).attach(trainer)
    trainer.train()
    assert all(record.num_params_after < record.num_params_before for record in callback.records)
    assert_follows(trainer)
    checkpoint = tmp_path / "whole" / "checkpoint-9"
    held = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]
    (text,) = held["layerprune.PruningCallback"]["plans"]
    assert PruningPlan.from_json(text).num_params_after == callback.records[0].num_params_after
    loaded = load_pruned(checkpoint, factory=classifier)
    assert sum(p.numel() for p in loaded.parameters()) == callback.records[0].num_params_after

    resumed = trainer_of(classifier(), halves(), tmp_path / "resumed", max_steps=14)
    again = PruningCallback(ONE_ROUND, **CHEAP).attach(resumed)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert again.records[0] == callback.records[0]
    assert [record.time for record in again.records] == [8]
    assert_follows(resumed)
    assert losses(resumed)[-5:] == pytest.approx(losses(trainer)[-5:], rel=1e-3)
    with pytest.raises(ValueError, match="valid checkpoint"):  # the Trainer's own words: there are no weights for it
        trainer_of(classifier(), halves(), tmp_path / "other").train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.reliability
def test_whole_layer_checkpoints_are_resumed_and_refused_without_the_callback_attached(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 15, "save_only_model": False}
    trainer = trainer_of(language_model(), counting(), tmp_path / "whole", **options)
    PruningCallback(TWO_ROUNDS, granularity="block", **CHEAP).attach(trainer)
    trainer.train()
    checkpoint = str(tmp_path / "whole" / "checkpoint-15")
    resumed = trainer_of(language_model(), counting(), tmp_path / "resumed")
    PruningCallback(TWO_ROUNDS, granularity="block", **CHEAP).attach(resumed)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert resumed.model.config.num_hidden_layers == 2
    assert losses(resumed)[-15:] == pytest.approx(losses(trainer)[-15:], rel=1e-3)
    other = trainer_of(language_model(), counting(), tmp_path / "other")
    other.add_callback(PruningCallback(TWO_ROUNDS, granularity="block", **CHEAP))
    with pytest.raises(ValueError, match=r"parameter group|attach"):
        other.train(resume_from_checkpoint=checkpoint)


@pytest.mark.reliability
def test_mixed_precision_and_added_gradients_prune_at_optimizer_steps(tmp_path):
    trainer = trainer_of(language_model(), counting(), tmp_path, bf16=True, gradient_accumulation_steps=2)
    callback = PruningCallback(TWO_ROUNDS, granularity="block", **CHEAP)
    trainer.add_callback(callback)
    trainer.train()
    assert [record.time for record in callback.records] == [10, 20]
    assert [entry["step"] for entry in trainer.state.log_history if "pruning/round" in entry] == [10, 20]
    assert_follows(trainer)
    assert losses(trainer)[-1] < losses(trainer)[9]
    assert not trainer.model._forward_pre_hooks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"},
            "load_best_model_at_end",
        ),
        ({"torch_compile": True}, "gives the model to torch.compile"),
    ],
)
def test_what_cannot_be_right_is_refused_before_the_first_step(tmp_path, options, message):
    trainer = trainer_of(language_model(), counting(), tmp_path)
    for name, value in options.items():
        setattr(trainer.args, name, value)
    trainer.add_callback(PruningCallback(TWO_ROUNDS))
    with pytest.raises(IntegrationError, match=message):
        trainer.train()
