"""Benchmarks of the core, each beside a floor measured in the same run."""

__all__ = ["row"]


def row(what: str, figure: str, floor: str, ratio: float, bar: float | None = None, most: bool = True) -> None:
    """Print one line of the table; the bar is the most (or least) that `ratio` may be. None: there is no bar."""
    if bar is None:
        print(f"| {what} | {figure} | {floor} | {ratio:.4g} | | |", flush=True)
        return
    met = ratio <= bar if most else ratio >= bar
    sign = "<=" if most else ">="
    print(
        f"| {what} | {figure} | {floor} | {ratio:.4g} | {sign} {bar:g} | {'met' if met else 'MISSED'} |", flush=True
    )
