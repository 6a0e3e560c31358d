"""How a value with its interval is written where it stands in a line of text or a Markdown table."""


def estimate_text(value: float | None, low: float | None, high: float | None, _n: int = 0) -> str:
    """Parts of an `Estimate` -> `0.557 (0.523–0.583)`, without an interval where there is none, or `not measured`."""
    if value is None:
        return "not measured"
    return f"{value:.3f}" + ("" if low is None or high is None else f" ({low:.3f}–{high:.3f})")
