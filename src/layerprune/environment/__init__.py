"""The process around the library: installed packages, the terminal, and other threads. Imports only the errors."""

# pyright: reportUnusedImport=false
from layerprune.environment.description import describe_environment
from layerprune.environment.extras import extra
from layerprune.environment.packages import how_to_install, how_to_match_torchvision
from layerprune.environment.process_lock import SharedContext, exclusive, holding_process_lock, locked
from layerprune.environment.progress import ProgressMessage, progress_bar, showing_progress
from layerprune.environment.solver_output import quiet_solver
from layerprune.environment.text_files import write_text
