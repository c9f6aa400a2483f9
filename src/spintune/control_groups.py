"""The control groups (cgroups, version 1 and 2) that limit this process, as containers and schedulers set them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MOUNT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def groups_of(controller: str, mount: Path = MOUNT, membership: Path = MEMBERSHIP) -> Iterator[Path]:
    """Folders of the groups in which ``controller`` ("cpu", "memory") limits this process, from its own up.

    A group shares what its parent has. Inside of a container a group's path may not exist, because the container's own
    group is mounted as the root. Not every folder exists.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        controllers = names.split(",")
        if names and controller not in controllers:
            continue
        mounted = (names, ",".join(reversed(controllers)), controller) if names else ("", "unified")  # version 1 or 2
        # a group outside of what is mounted here has a path with ".." in it
        group = PurePosixPath("/") if ".." in path else PurePosixPath(path)
        for name in dict.fromkeys(mounted):
            yield from (mount / name / level.relative_to("/") for level in (group, *group.parents))
