"""Published cache traces under every policy and the optimum, beside the figures that others computed.

`python -m benchmarks.bench_traces [FOLDER]`: the table of docs/policies.md. All sizes are a tenth of the distinct keys.
Exits with 1 where a hit ratio differs from the published one in the third digit.
"""

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from treering.replays.lab import Report, examine, size_of
from treering.replays.traces import read_trace

__all__ = ["main"]

_FOLDER = Path("../shared/data/traces")
_RULES = ["window", "lru", "sieve", "s3fifo", "actr"]
_PUBLISHED: dict[str, tuple[float, float]] = {
    "conversation_trace.jsonl": (0.278, 0.366),
    "synthetic_trace.jsonl": (0.260, 0.506),
    "2_pools.trace.gz": (0.544, 0.685),
    "multi1.trace.gz": (0.434, 0.527),
    "multi2.trace.gz": (0.369, 0.549),
    "multi3.trace.gz": (0.355, 0.529),
    "ps.trace.gz": (0.163, 0.544),
    "sprite.trace.gz": (0.865, 0.914),
    "cs.trace.gz": (0.018, 0.101),
    "gli.trace.gz": (0.009, 0.178),
    "cpp.trace.gz": (0.757, 0.841),
    "loop.trace.gz": (0.0, 0.099),
    "web07.trace.xz": (0.557, 0.681),
    "web12.trace.xz": (0.685, 0.800),
}
"""Hit ratios of LRU and Belady."""


def _examine(path: Path) -> tuple[Report, float]:
    started = time.process_time()
    trace = read_trace(path)
    return examine(trace, _RULES, size_of(trace, "10%"), time.perf_counter), time.process_time() - started


def main(folder: Path = _FOLDER) -> int:
    """Measure and print; how many figures differ."""
    paths = [path for path in folder.rglob("*") if ".trace" in path.name or path.suffix == ".jsonl"]
    if not paths:
        print(f"skipped: expected traces in {folder}, found none")
        return 0
    started, used, wrong = time.perf_counter(), 0.0, 0
    print("| trace | accesses | size | " + " | ".join(_RULES) + " | optimum | chosen | |")
    print("|---" * (len(_RULES) + 6) + "|")
    with ProcessPoolExecutor(2) as pool:
        for report, seconds in pool.map(_examine, sorted(paths, key=lambda path: -path.stat().st_size)):
            used += seconds
            by_name = {one.policy.partition(":")[0]: one for one in report.policies}
            ratios = " | ".join(f"{by_name[rule].hit_ratio:.3f}" for rule in _RULES)
            choice = report.choice
            chosen = f"{choice.policy.partition(':')[0]} {choice.shares[choice.policy]:.0%}" if choice else ""
            published = _PUBLISHED.get(report.name)
            equal = published == (round(by_name["lru"].hit_ratio, 3), round(report.optimum, 3))
            wrong += published is not None and not equal
            verdict = "" if published is None else "equal" if equal else f"DIFFERS from {published}"
            print(
                f"| {report.name} | {report.accesses} | {report.size} | {ratios} | {report.optimum:.3f} "
                f"| {chosen} | {verdict} |",
                flush=True,
            )
    print(f"\n{len(paths)} traces in {time.perf_counter() - started:.0f} s, {used:.0f} s of CPU; {wrong} differ")
    return wrong


if __name__ == "__main__":
    sys.exit(1 if main(*map(Path, sys.argv[1:2])) else 0)
