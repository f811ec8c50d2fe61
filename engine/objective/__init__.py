"""What the model is trained on: group advantages and the clipped policy-gradient objective."""
