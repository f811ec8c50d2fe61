"""What "better" means: which rewards, their weights, and the options that some of them have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from engine.settings.section import PositiveInt, Section

RewardName = Literal[
    "composition",
    "vividness",
    "compressibility",
    "incompressibility",
    "ocr",
    "safety",
    "function",
    "http",
    "judge",
    "clip_score",
    "hpsv2",
    "pickscore",
    "image_reward",
    "aesthetic",
]


class ServerSettings(Section):
    """Where a reward's server listens, and how patiently it is asked."""

    url: str = Field(
        max_length=2000,
        description="http(s) address; for a judge the one that /chat/completions is added to, such as "
        "http://127.0.0.1:8000/v1. It must be on the list in PALATE_REWARD_SERVERS.",
    )
    model: str = Field("", max_length=200, description="Model that the server shall use, where it has several.")
    timeout: float = Field(60.0, gt=0.0, le=600.0, description="Most seconds a request may take, answer and all.")
    retries: int = Field(2, ge=0, le=10, description="Further tries after one that may go better the next time.")
    concurrency: PositiveInt = Field(4, le=64, description="Requests under way at a time.")
    batch_size: PositiveInt = Field(8, le=256, description="Images in a request; a judge is shown one at a time.")

    @field_validator("url")
    @classmethod
    def _an_address(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            whole = False
        if not whole:
            raise ValueError("give an http:// or https:// address, such as http://127.0.0.1:8000/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("give an address without a password, ? or #; a key belongs in PALATE_REWARD_KEYS")
        return url


class JudgeSettings(Section):
    """What a vision-language model is asked of an image."""

    style: Literal["score", "question", "unified_reward"] = Field(
        "score",
        description="A number is asked for; or questions, of whose yes the probability counts; or the point score "
        "that UnifiedReward models were trained to give.",
    )
    rubric: str = Field(
        "", max_length=10_000, description='What the number shall measure (style "score"); empty = fidelity and beauty.'
    )
    questions: tuple[str, ...] = Field(
        (), max_length=20,
        description='Questions to answer with yes or no (style "question"); {prompt} stands for the prompt; empty = '
        "whether the image shows it.",
    )
    lowest: float = Field(0.0, description='The worst score (style "score").')
    highest: float = Field(10.0, description='The best score (style "score").')
    max_tokens: PositiveInt = Field(
        2048, le=8192, description="Tokens an answer may take, those of a judge that thinks aloud first included."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.rubric and self.style != "score":
            raise ValueError(f'the style "{self.style}" takes no rubric; remove it, or use the style "score"')
        if self.questions and self.style != "question":
            raise ValueError(f'the style "{self.style}" takes no questions; remove them, or use the style "question"')
        if not all(question.strip() for question in self.questions):
            raise ValueError("a question is empty; write it, or remove it")
        if self.lowest >= self.highest:
            raise ValueError(f"lowest is {self.lowest:g}; it must be below highest, {self.highest:g}")
        return self


class RewardSettings(Section):
    """One reward and its weight. What follows `gate` are options that some rewards have and the others refuse."""

    name: RewardName = Field(description="Which reward.")
    weight: float = Field(
        1.0, ge=0.0, description="Share in the mix; weights are normalised to sum 1. 0 = measured, not trained on."
    )
    label: str | None = Field(
        None, pattern=r"^\w[\w .-]{0,39}$",
        description="What its scores are called; empty = its name. With labels one reward may be used twice.",
    )
    gate: float | None = Field(
        None,
        description="An image that scores below this counts as its group's worst by every reward; empty = no gate.",
    )
    weights: str | None = Field(
        None, min_length=1, max_length=1000,
        description="Its weights: a folder, or a model hub's id; empty = those it usually has.",
    )
    revision: str | None = Field(
        None, pattern=r"^[\w./-]{1,100}$", description="Which revision, where `weights` is a hub's id."
    )
    server: ServerSettings | None = Field(None, description="The server that scores.")
    judge: JudgeSettings | None = Field(None, description="What a judge is asked.")
    function: str | None = Field(
        None, pattern=r"^[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?$",
        description="A function of your own: module:name, or a name in the entry point group palate.rewards.",
    )

    @property
    def key(self) -> str:
        """What its scores are called everywhere: its label, or its name."""
        return self.label or self.name

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if self.label != self.name and self.label in get_args(RewardName):
            raise ValueError(f"`label` is the name of another reward, {self.label}; choose another")
        for option in REWARD_OPTIONS:
            if getattr(self, option) is None:
                if self.name in _NEEDED.get(option, ()):
                    raise ValueError(f"the reward {self.name} needs `{option}`; add it")
            elif self.name not in REWARD_OPTIONS[option]:
                raise ValueError(f"the reward {self.name} takes no `{option}`; remove it")
        if self.revision is not None and self.weights is None:
            raise ValueError("`revision` says which of a hub's weights; name them in `weights`, or remove it")
        return self

    @model_serializer(mode="wrap")
    def _without_empty_options(self, to_data: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # As settings were written before there were options, so that their digest stays what it was.
        return {name: value for name, value in to_data(self).items() if value is not None}


_MODELS: frozenset[RewardName] = frozenset({"clip_score", "hpsv2", "pickscore", "image_reward", "aesthetic"})

REWARD_OPTIONS: Mapping[str, frozenset[RewardName]] = {
    "weights": _MODELS,
    "revision": _MODELS,
    "server": frozenset({"http", "judge"}),
    "judge": frozenset({"judge"}),
    "function": frozenset({"function"}),
}
"""Which rewards have each option; `label` and `gate` are for all."""

_NEEDED: Mapping[str, frozenset[RewardName]] = {
    "server": frozenset({"http", "judge"}),
    "function": frozenset({"function"}),
}
"""Which of them cannot do without it."""
