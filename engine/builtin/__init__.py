"""The built-in text-to-image model: a small flow model of scenes of coloured shapes, with its exact checker."""

from pathlib import Path

WEIGHTS: Path = Path(__file__).resolve().parent / "weights"
