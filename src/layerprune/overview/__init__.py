"""What a person sees of a pruner: the facts of the printed plan, and the methods that show them."""

# pyright: reportUnusedImport=false
from layerprune.overview.display import PlanDisplay
from layerprune.overview.overview import Overview
from layerprune.overview.reporting import PlanReport, report_folder
