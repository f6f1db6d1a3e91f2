"""What a model directory has beside the weights: its code, and its card."""
