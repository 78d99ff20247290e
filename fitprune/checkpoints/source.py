"""Where a checkpoint's files come from: a folder, or a repository of the Hugging Face hub (and its local cache).

Only the files that are asked for are fetched, one at a time: an original LLaVA repository may hold weights in two
formats, and a CLIP repository weights for three frameworks.

    python -c "from fitprune.checkpoints.source import Source; print(Source('.').get('README.md'))"
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import FitPruneError, first_line


class Source:
    """Files of one checkpoint. A folder of that name goes before a hub repository of that name."""

    def __init__(self, path: str | Path) -> None:
        """
        Raises:
            FitPruneError: for something that is neither a folder nor can be a hub name.
        """
        self.name = str(path)
        place = Path(path).expanduser()
        self.folder = place if place.is_dir() else None
        if self.folder is None and (place.exists() or place.is_absolute() or self.name.startswith((".", "~")) or len(place.parts) > 2):
            raise FitPruneError(
                f"no checkpoint at {path}: expected a folder with config.json, or a hub name such as llava-hf/llava-1.5-7b-hf"
            )

    def __str__(self) -> str:
        return self.name

    @property
    def place(self) -> str:
        """What transformers' own from_pretrained takes: the folder's path, or the hub name."""
        return self.name if self.folder is None else str(self.folder)

    def get(self, file: str) -> Path | None:
        """The file on this machine, fetched if need be; None if the checkpoint has none of that name.

        Raises:
            FitPruneError: when the hub has no such repository or cannot be reached.
        """
        if self.folder is not None:
            path = self.folder / file
            return path if path.is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return Path(hf_hub_download(self.name, file))
        except EntryNotFoundError:  # also when offline and not in the cache
            return None
        except (OSError, ValueError) as error:
            raise FitPruneError(f"cannot load {self.name}: no such folder, and the hub says: {first_line(error)}") from None

    def json(self, file: str) -> dict[str, Any]:
        """A JSON object that must be there.

        Raises:
            FitPruneError: when it is missing, torn or not an object.
        """
        path = self.get(file)
        if path is None:
            where = "is not in this folder" if self.folder else "is neither in the local cache nor can it be fetched"
            raise FitPruneError(f"{self.name} is no complete checkpoint: {file} {where}")
        return read_json(path)

    def folders(self) -> list[Path]:
        """Folders inside this one (none for a hub repository), sorted."""
        return [] if self.folder is None else sorted(path for path in self.folder.iterdir() if path.is_dir())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        FitPruneError: naming the file, when it cannot be read, is torn or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FitPruneError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise FitPruneError(f"cannot load {path}: not JSON, or torn ({error}); download it again") from None
    if not isinstance(value, dict):
        raise FitPruneError(f"cannot load {path}: a JSON object was expected, not a {type(value).__name__}")
    return value
