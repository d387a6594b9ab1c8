"""Removals are proven: they are carried out on a copy of the model, and its run is compared with the expected one."""

# pyright: reportUnusedImport=false
from layerprune.proof.joint import JointRemovals
from layerprune.proof.prover import Prover, Removal
from layerprune.proof.unused_modules import UnusedModule, find_unused, plan_unused, unused_note
from layerprune.proof.verdicts import about_calls, by_impact, why_critical, with_reasons
