"""What a run leaves behind: checkpoints it can resume from, and exports that load elsewhere."""
