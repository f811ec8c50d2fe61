"""Facts about rewards, models and export formats that the workbench shows, without loading any of them (torch-free).

The code behind the names is in `engine.rewards.REWARDS`, `engine.models.MODELS` and
`engine.artifacts.export.EXPORT_FORMATS`; tests hold the names equal.
"""

from __future__ import annotations

from engine.catalogue.exports import EXPORT_INFO, ExportInfo, ExportPrecision, why_not
from engine.catalogue.models import MODEL_INFO, ModelInfo, Usual
from engine.catalogue.rewards import REWARD_INFO, RewardInfo

__all__ = [
    "EXPORT_INFO",
    "MODEL_INFO",
    "REWARD_INFO",
    "ExportInfo",
    "ExportPrecision",
    "ModelInfo",
    "RewardInfo",
    "Usual",
    "why_not",
]
