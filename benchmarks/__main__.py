"""Runs the core benchmarks and prints one table: `python -m benchmarks`."""

import platform
import sqlite3
import time

from benchmarks import bench_append, bench_fold, bench_fork, bench_linear, bench_resume, bench_tasks

if __name__ == "__main__":
    print(time.strftime("%Y-%m-%d"), platform.platform(), "Python", platform.python_version())
    print("SQLite", sqlite3.sqlite_version)
    print("| what | figure | floor | ratio | bar | |\n|---|---|---|---|---|---|")
    for bench in (bench_append, bench_fold, bench_tasks, bench_resume, bench_fork, bench_linear):
        bench.main()
