"""``python -m layerprune``: the command line."""

from layerprune.cli import main

if __name__ == "__main__":
    main()
