"""Benchmarks of the core, each beside a floor measured in the same run."""


def row(what: str, figure: str, floor: str, ratio: float, bar: float, most: bool = True) -> None:
    """Print one line of the table; the bar is the most (or least) that `ratio` may be."""
    met = ratio <= bar if most else ratio >= bar
    sign = "<=" if most else ">="
    print(
        f"| {what} | {figure} | {floor} | {ratio:.4g} | {sign} {bar:g} | {'met' if met else 'MISSED'} |", flush=True
    )
