"""The training loop: steps, evaluations on held-out data, and a result that is never worse than the start."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from layerprune.capture import Batch, Probe, See, on_batch
from layerprune.distillation.accelerator import Accelerating
from layerprune.distillation.hidden_matching import Match
from layerprune.distillation.losses import loss_of_hidden, loss_of_output
from layerprune.distillation.recipe import Recipe
from layerprune.distillation.snapshots import Snapshot, Snapshots
from layerprune.distillation.student import Student
from layerprune.distillation.teacher import Teacher, TeacherOutput
from layerprune.distillation.training_state import TrainingState
from layerprune.environment import ProgressMessage
from layerprune.errors import DistillationError
from layerprune.fidelity import Divergence


class Trainer:
    """Trains a student; ``held_out`` are places in ``batches`` for evaluation, and ``harm`` compares outputs."""

    def __init__(
        self,
        recipe: Recipe,
        student: Student,
        teacher: Teacher,
        matches: Sequence[Match],
        harm: Divergence,
        batches: Sequence[Batch],
        held_out: Sequence[int],
        tools: Accelerating,
    ) -> None:
        self.recipe = recipe
        self.student = student
        self.teacher = teacher
        self.matches = matches
        self.harm = harm
        self.batches = batches
        self.held_out = held_out
        self.tools = tools
        # A single batch is both trained on and evaluated.
        self.places = [place for place in range(len(batches)) if place not in held_out or len(batches) == 1]
        self.num_steps = recipe.num_epochs * len(self.places)
        self.observer = Probe(student.side.shade, student.side.graph, [match.student for match in matches])
        self.optimizer = tools.optimizer(
            torch.optim.AdamW(list(student.trained.values()), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        )
        count = min(recipe.num_evaluations, self.num_steps)
        self.look_after = {round(self.num_steps * (place + 1) / count) for place in range(count)}

    def place(self, step: int) -> int:
        """Batch of a step; each epoch has its own order, derived from the seed."""
        epoch, within = divmod(step, len(self.places))
        draw = torch.Generator().manual_seed(self.recipe.seed + epoch)
        return self.places[int(torch.randperm(len(self.places), generator=draw)[within])]

    def run(self, course: TrainingState, save: Callable[[], object], told: ProgressMessage) -> None:
        """Train to the end; ``save`` is called after each evaluation except the first, and at the end.

        Raises:
            DistillationError: the student's forward or backward raises.
        """
        since = time.perf_counter() - course.seconds
        if not course.looks:
            course.look(0, self.look(), {})
            if not math.isfinite(course.looks[0][1]):
                raise DistillationError(
                    "the pruned model's output on the held-out data is not finite: look for NaN in it"
                )
        while not course.stopped:
            step = len(course.losses)
            told(step, self.num_steps, _said(course))
            if not self.step(step, course) or course.has_diverged():
                course.stopped = f"the loss diverged at step {step + 1}"
            elif step + 1 in self.look_after:
                course.look(step + 1, self.look(), self.student.state())
                if course.looks_since_best() >= self.recipe.patience:
                    course.stopped = f"no gain on the held-out data in {self.recipe.patience} looks"
                elif step + 1 == self.num_steps:
                    course.stopped = "all steps were taken"
            if course.stopped or len(course.losses) in self.look_after:
                course.seconds = time.perf_counter() - since
                save()

    def save(self, snapshots: Snapshots, course: TrainingState) -> None:
        snapshots.save(course, self.student.state(), self.optimizer, self.tools.scaler)

    def resume(self, snapshot: Snapshot) -> TrainingState:
        """Restore student and optimizer from a snapshot, and return the state of the training."""
        self.student.load(snapshot.state)
        state = self.optimizer.state_dict()
        state["state"] = {number: dict(held) for number, held in snapshot.optimizer.items()}
        self.optimizer.load_state_dict(state)
        self.tools.scaler = dict(snapshot.scaler)
        return snapshot.course

    def step(self, step: int, course: TrainingState) -> bool:
        """Take one step; False, with nothing changed, where loss or gradients are not finite."""
        place = self.place(step)
        batch = self.batches[place]
        lesson = self.teacher.lesson(place, batch)
        found: dict[int, Tensor] = {}
        losses: list[float] = []
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(step, self.num_steps)

        def learn(out: Any) -> None:
            loss = self.loss(out, found, lesson, batch)
            losses.append(float(loss.detach()))
            if math.isfinite(losses[0]):
                self.tools.backward(loss)

        self.optimizer.zero_grad(set_to_none=True)
        self.forward(batch, step, found, learn, place)
        if not math.isfinite(losses[0]):
            return False
        if not self.tools.clip(self.student.trained.values(), self.recipe.max_norm):
            return False
        self.optimizer.step()
        course.losses.append(losses[0])
        return True

    def forward(
        self, batch: Batch, step: int, found: dict[int, Tensor], learn: Callable[[Any], None], place: int
    ) -> None:

        def begin() -> See:
            found.clear()
            return found.__setitem__

        def call(model: Any) -> Any:
            torch.manual_seed(self.recipe.seed + step)  # some forwards draw random numbers even in eval mode
            with self.tools.autocast():
                return self.student.side.shade.call(batch.inputs)

        with self.on_batch(place):
            self.observer.run(batch.inputs, begin, use=learn, forward=call)

    def on_batch(self, place: int) -> AbstractContextManager[None]:
        """Name a batch where the pruned model raises on it."""
        model, inputs = self.student.side.shade.model, self.batches[place].inputs
        return on_batch(model, inputs, f"batch {place}", DistillationError, who="the pruned model")

    def loss(self, out: Any, found: dict[int, Tensor], lesson: TeacherOutput, batch: Batch) -> Tensor:
        parts: list[Tensor] = []
        if self.recipe.output_weight:
            outputs = self.outputs(out, lesson)
            output = loss_of_output(self.harm.kind, outputs, lesson.outputs, batch.mask, self.recipe)
            parts.append(self.recipe.output_weight * output)
        if self.recipe.hidden_weight:
            hidden = loss_of_hidden(self.matches, found, lesson.hidden, batch.mask)
            if hidden is not None:
                parts.append(self.recipe.hidden_weight * hidden)
        if not parts:
            raise DistillationError("no hidden state was seen in both models; give output_weight= above 0")
        return torch.stack(parts).sum()

    def outputs(self, out: Any, lesson: TeacherOutput) -> list[Tensor]:
        found = self.harm.outputs(out)
        if len(found) != len(lesson.outputs):
            raise DistillationError(
                f"the pruned model returns {len(found)} tensors and the original {len(lesson.outputs)}: let both "
                "return what is to be matched and no more, as output_hidden_states=False does"
            )
        for one, other in zip(found, lesson.outputs, strict=True):
            if isinstance(other, Tensor) and one.shape != other.shape:
                raise DistillationError(
                    f"the pruned model returns {tuple(one.shape)} where the original returns {tuple(other.shape)}: "
                    "train a model to do what it has come from does"
                )
        return found

    def look(self) -> float:
        """Divergence of the output on the held-out data."""
        shade = self.student.side.shade
        change = size = 0.0
        for place in self.held_out:
            batch = self.batches[place]
            lesson = self.teacher.lesson(place, batch)
            with self.on_batch(place):
                out = shade.forward(batch.inputs, seed=self.recipe.seed)
            one, other = self.harm.between(list(lesson.outputs), self.outputs(out, lesson), batch.mask)
            change, size = change + one, size + other
        return change / size


def _said(course: TrainingState) -> str:
    if not course.losses:
        return ""
    recent = course.losses[-10:]
    return f"loss {sum(recent) / len(recent):.3g}, held out {min(harm for _, harm in course.looks):.3g}"
