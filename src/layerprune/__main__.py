"""``python -m layerprune``: the command line."""

from layerprune.cli import main

main()
