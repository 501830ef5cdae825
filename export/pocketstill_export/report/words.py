"""Figures and lists in the words of the project's pages."""

from __future__ import annotations

import math
from collections.abc import Iterable

SPACE = "\N{NARROW NO-BREAK SPACE}"
_MINUS = "\N{MINUS SIGN}"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def label(name: str) -> str:
    """A skill's or tag's name as words."""
    return name.replace("_", " ")


def percent(share: float | None, digits: int = 1) -> str:
    """A share as per cent, without the sign of it: 0.9712 is "97.1"; a dash for None."""
    return "\N{EN DASH}" if share is None else f"{100 * share:.{digits}f}"


def with_percent(share: float | None) -> str:
    """A share with its unit, and no digit behind the point that says nothing: 0.95 is "95 %"."""
    return percent(None) if share is None else f"{100 * share:.1f}".removesuffix(".0") + SPACE + "%"


def points(share: float) -> str:
    """A difference in percentage points with its sign: -0.004 is "−0.4"."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", _MINUS)


def figure(number: float) -> str:
    """A measured figure at three significant digits, thousands apart: 941.3 is "941", 4.125 is "4.12"."""
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"


def spread(sd: float, of: float) -> str:
    """A standard deviation with as many digits behind the point as the figure that it belongs to."""
    digits = 0 if abs(of) >= 100 else 1 if abs(of) >= 10 else 2
    return f"{sd:,.{digits}f}"


def tiny(number: float) -> str:
    """A figure of any size at two digits: 0.0041 is "4.1 × 10⁻³"."""
    if number == 0 or 0.01 <= abs(number) < 100:
        return f"{number:.2g}"
    mantissa, _, exponent = f"{number:.1e}".partition("e")
    return f"{mantissa}{SPACE}×{SPACE}10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}{SPACE}min {rest}{SPACE}s"


def count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(words: Iterable[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    found = list(words)
    return " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)


def power(number: float) -> str:
    """A tick of a logarithmic axis: a power of ten as such, from 0.01 on as a plain figure."""
    if number >= 0.01:
        return f"{number:g}"
    mantissa, _, exponent = f"{number:.0e}".partition("e")
    ten = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    return ten if mantissa == "1" else f"{mantissa}·{ten}"


def error(of: float, value: float) -> str:
    """A figure of any size with its error, both to the error's second digit: "0.0183 ± 0.0011", "1.9 ± 0.4 × 10⁻⁶"."""
    if not of > 0:
        return tiny(value)
    if value >= 1e-3 or value == 0:
        digits = min(6, max(2, 1 - int(f"{of:.1e}".partition("e")[2])))
        return f"{value:.{digits}f} ± {of:.{digits}f}"
    scale = math.floor(math.log10(value))
    ten = f"10{str(scale).translate(_SUPERSCRIPT)}"
    return f"({value / 10.0**scale:.1f} ± {of / 10.0**scale:.1f}){SPACE}×{SPACE}{ten}"


def mib(size: float) -> str:
    """Bytes in MiB at three digits."""
    return figure(size / 2**20)
