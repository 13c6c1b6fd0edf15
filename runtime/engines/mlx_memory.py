"""How much memory a model may still use on this machine."""

import os
from pathlib import Path
from typing import Any

__all__ = ["available_bytes"]

_UNKNOWN_BYTES = 4 << 30
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(mx: Any) -> int:
    """Bytes free for use now, on the device where MLX computes. A guess of 4 GiB where nothing tells."""
    device = mx.default_device()
    if device.type != mx.DeviceType.cpu:
        described = mx.device_info(device)
        total = described.get("max_recommended_working_set_size") or described.get("memory_size")
        if total:
            return max(int(total) - int(mx.get_active_memory()), 0)
    return min(_host_bytes(), _cgroup_bytes())


def _host_bytes() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass  # not Linux
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError):
        return _UNKNOWN_BYTES


def _cgroup_bytes() -> int:
    """What the container's limit leaves; no limit is a very large number."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = (_CGROUP / "memory.current").read_text().strip()
    except OSError:
        return 1 << 62
    return 1 << 62 if limit == "max" else max(int(limit) - int(used), 0)
