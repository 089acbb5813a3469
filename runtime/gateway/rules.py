"""Which rule an object falls under, and what that rule makes of a verdict. Fail closed: no rule, no way out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from pydicom.uid import UID

from .settings import Action, Rule

__all__ = ["Facts", "choose_rule", "decide"]

Verdict = Literal["clear", "match", "error", "no-pixels"]


@dataclass(frozen=True)
class Facts:
    """What rules ask about.

    The AE titles and the source are how the object came; modality and SOP class are what it says of itself: its sender's choice.
    """

    source: str
    calling_aet: str
    called_aet: str
    modality: str
    sop_class: str


def choose_rule(rules: Sequence[Rule], facts: Facts) -> Rule | None:
    """The first rule that fits, or None."""
    return next((rule for rule in rules if _fits(rule, facts)), None)


def decide(rule: Rule, verdict: Verdict) -> tuple[Action, tuple[str, ...]]:
    """What happens to an object, and where it goes if it is forwarded."""
    if verdict == "clear":
        return _action(rule.on_clear, rule.forward_to)
    if verdict == "match":
        return _action(rule.on_match, rule.forward_matches_to)
    if verdict == "no-pixels":
        return _action(rule.on_no_pixels, rule.forward_to)
    return ("keep" if rule.on_error == "keep" else "quarantine"), ()


def _action(action: Action, destinations: tuple[str, ...]) -> tuple[Action, tuple[str, ...]]:
    if action == "forward" and destinations:
        return "forward", destinations
    return ("keep" if action == "keep" else "quarantine"), ()


def _fits(rule: Rule, facts: Facts) -> bool:
    keyword = UID(facts.sop_class).keyword if facts.sop_class else ""
    return (
        (not rule.source or facts.source in rule.source)
        and _any(rule.calling_aet, facts.calling_aet)
        and _any(rule.called_aet, facts.called_aet)
        and _any(rule.modality, facts.modality)
        and _any(rule.sop_class, facts.sop_class, keyword)
    )


def _any(patterns: tuple[str, ...], *values: str) -> bool:
    return not patterns or any(fnmatchcase(value, pattern) for pattern in patterns for value in values if value)
