"""The oracle: removals simulated on the untouched model, and random networks and programs to try them on."""
