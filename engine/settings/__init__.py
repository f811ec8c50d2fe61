"""RunSettings: everything a run is told, typed, with units, and free of torch.

The workbench draws its forms from these fields, the database stores them as JSON, the engine runs them, and
``palate train`` reads them from YAML. Unknown keys are refused.
"""

from __future__ import annotations

from engine.settings.compute import ComputeSettings
from engine.settings.model import ModelName, ModelSettings
from engine.settings.objective import GrpoSettings, Method, NftSettings
from engine.settings.prompts import PromptSettings
from engine.settings.rewards import REWARD_OPTIONS, JudgeSettings, RewardName, RewardSettings, ServerSettings
from engine.settings.run import RunSettings
from engine.settings.sampling import (
    SOLVER_TYPES,
    FlashSettings,
    KernelName,
    SamplingSettings,
    SolverName,
    SolverType,
    WindowSettings,
    WindowStrategy,
    last_position_of,
)
from engine.settings.section import PositiveInt, Section, UnitInterval
from engine.settings.training import (
    CheckpointSettings,
    EvaluationSettings,
    GuardSettings,
    LearningRateSchedule,
    OptimiserName,
    OptimiserSettings,
    TuningSettings,
)

__all__ = [
    "REWARD_OPTIONS",
    "SOLVER_TYPES",
    "CheckpointSettings",
    "ComputeSettings",
    "EvaluationSettings",
    "FlashSettings",
    "GrpoSettings",
    "GuardSettings",
    "JudgeSettings",
    "KernelName",
    "LearningRateSchedule",
    "Method",
    "ModelName",
    "ModelSettings",
    "NftSettings",
    "OptimiserName",
    "OptimiserSettings",
    "PositiveInt",
    "PromptSettings",
    "RewardName",
    "RewardSettings",
    "RunSettings",
    "SamplingSettings",
    "Section",
    "ServerSettings",
    "SolverName",
    "SolverType",
    "TuningSettings",
    "UnitInterval",
    "WindowSettings",
    "WindowStrategy",
    "last_position_of",
]
