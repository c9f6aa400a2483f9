"""What the name of a model means, by the files of this machine alone."""

from __future__ import annotations

from pathlib import Path

from spintune.errors import ModelError
from spintune.hub import refuse_missing_path
from spintune.models.packaged import ALIASES


def check_name(name: str) -> None:
    """Raises ModelError for a name that is no alias, nothing on this machine, and cannot be a hub id."""
    path = Path(name).expanduser()
    owner, _, rest = name.partition("/")
    if name in ALIASES:
        return
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"model file {name} does not exist")
    elif path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise ModelError(f"model folder {name} has no config.json; name a Hugging Face model folder")
    elif owner and rest and "/" not in rest and not name.startswith((".", "~")):
        refuse_missing_path(name)
    elif rest:
        raise ModelError(f"no model {name!r}: there is no such folder{_nearest_folder(path)}")
    else:
        raise ModelError(
            f"no model {name!r}: it is no alias ({', '.join(ALIASES)}), no folder, no .gguf file and no hub id "
            "(owner/name)"
        )


def _nearest_folder(path: Path) -> str:
    """The part of a path that is there, in words."""
    there = next((parent for parent in path.parents if parent.is_dir()), Path())
    missing = path.relative_to(there).parts[0] if path.is_relative_to(there) else path.name
    return f"; {there.absolute()} has no {missing}, check the path"
