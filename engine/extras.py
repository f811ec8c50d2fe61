"""What is said when packages of an extra are not installed."""

from __future__ import annotations


def missing_extra(what: str, extra: str, error: ImportError) -> ValueError:
    """The mistake to raise: which packages a thing needs, and the command that installs them."""
    return ValueError(
        f"{what} needs packages that are not installed here ({error.name or error}); install them with "
        f'`.venv/bin/pip install -c constraints.txt -e ".[{extra}]"`.'
    )
