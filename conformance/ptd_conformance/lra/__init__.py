"""The Long Range Arena: its data, its recipes, one training loop, and the recorded accuracies."""
