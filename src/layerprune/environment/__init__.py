"""The process around the library: installed packages, the terminal, and other threads.

Imports nothing else of layerprune but the errors.
"""

from layerprune.environment.extras import extra
from layerprune.environment.packages import how_to_install, how_to_match_torchvision
from layerprune.environment.process_lock import taking_turns
from layerprune.environment.progress import Told, shown

__all__ = [
    "Told",
    "extra",
    "how_to_install",
    "how_to_match_torchvision",
    "shown",
    "taking_turns",
]
