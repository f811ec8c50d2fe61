"""What a reward says when its packages are not installed."""

from __future__ import annotations


def missing_extra(reward: str, extra: str, error: ImportError) -> ValueError:
    """The mistake to raise: which packages the reward needs, and the command that installs them."""
    return ValueError(
        f"The reward {reward} needs packages that are not installed here ({error.name or error}); install them with "
        f'`.venv/bin/pip install -c constraints.txt -e ".[{extra}]"`.'
    )
