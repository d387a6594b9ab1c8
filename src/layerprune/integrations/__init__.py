"""Prunes models in the middle of their training: schedules, optimizers, and callbacks of training frameworks."""

# pyright: reportUnusedImport=false
from layerprune.integrations.optimizer import OptimizerReport, rebuild_optimizer
from layerprune.integrations.schedule import Schedule
from layerprune.integrations.training import PruningRecord, ScheduledPruning, prune_in_training
