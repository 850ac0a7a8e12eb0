"""Numbers for a person."""

from __future__ import annotations


def size(amount: int) -> str:
    """Bytes in the unit that suits them: ``"97.5 MB"``."""
    value, units = float(amount), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}" if value < 1000 else f"{value:,.0f} {units[0]}"
