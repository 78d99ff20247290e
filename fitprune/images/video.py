"""Videos: frames at a bounded rate and number, from a file, a folder of frame images, or images that are open.

A file is decoded by what transformers decodes with (torchcodec, PyAV, decord or OpenCV, the first that is installed), and only the frames
that are wanted are kept. A folder holds one image per frame, sorted by name; so does a list: neither needs a decoder. Frames are taken
evenly, `fps` of them a second and `most` at all, so that a long video costs no more than a short one; a model that tells times gets those
of the frames that it sees. Left out: sound.

    python -c "from fitprune.images.video import *; from PIL import Image; print(read_video([Image.new('RGB', (9, 9))] * 100))"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import FitPruneError, first_line
from .reading import as_rgb, read_image

FPS, MOST = 2.0, 32  # frames a second, and of a whole video
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # of frames in a folder
DECODERS = {"torchcodec": "torchcodec", "pyav": "av", "decord": "decord", "opencv": "cv2"}  # transformers' name → its package


@dataclass(frozen=True)
class Video:
    """Frames in order, and which ones of how many they were, `rate` a second."""

    frames: Sequence[Image.Image] = field(repr=False)
    indices: Sequence[int]
    total: int
    rate: float

    def metadata(self) -> Any:
        """What transformers' processors are told."""
        from transformers.video_utils import VideoMetadata

        width, height = self.frames[0].size
        return VideoMetadata(
            total_num_frames=self.total, fps=self.rate, width=width, height=height, duration=self.total / self.rate,
            frames_indices=list(self.indices),
        )  # fmt: skip


def chosen(total: int, rate: float, fps: float, most: int) -> list[int]:
    """Which frames of `total` are looked at: evenly spaced, `fps` a second, at least one and at most `most`."""
    count = max(1, min(most, total, round(total / rate * fps)))
    return [index * total // count for index in range(count)]


def read_video(
    source: str | Path | Sequence[str | Path | Image.Image], fps: float = FPS, most: int = MOST, rate: float | None = None
) -> Video:
    """Frames of a video file, of a folder of frame images, or of a list of images (files or open ones).

    Args:
        fps: Frames a second to look at. most: How many at all.
        rate: Frames a second of a folder or list, default `fps`, which takes them all.
    Raises:
        FitPruneError: nothing there, nothing to decode it with, a damaged file, bounds below one frame.
    """
    if fps <= 0 or most < 1:
        raise FitPruneError(f"a video is looked at in at least one frame: fps {fps:g} and {most} frames are not possible")
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_dir():
            return _decoded(path, fps, most)
        source = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES)
        if not source:
            raise FitPruneError(f"{path} holds no images: a folder given as a video has one image per frame")
    if not source:
        raise FitPruneError("this video has no frames: give at least one image")
    rate = rate or fps
    indices = chosen(len(source), rate, fps, most)
    opened = [source[index] for index in indices]
    frames = [as_rgb(one) if isinstance(one, Image.Image) else read_image(one) for one in opened]
    if len({frame.size for frame in frames}) > 1:
        raise FitPruneError("the frames of a video have one size: these have several")
    return Video(frames, indices, len(source), rate)


def _decoded(path: Path, fps: float, most: int) -> Video:
    if not path.is_file():
        raise FitPruneError(f"no video {path}: check its name (and --image-folder)")
    from importlib.util import find_spec

    decoder = next((name for name, package in DECODERS.items() if find_spec(package)), None)
    if decoder is None:
        raise FitPruneError(
            f"nothing is installed that decodes {path.name}: pip install torchcodec (or av), or give a folder with one image per frame"
        )
    from transformers.video_utils import load_video

    def wanted(metadata: Any, **_: Any) -> Any:
        import numpy as np

        return np.array(chosen(int(metadata.total_num_frames), float(metadata.fps or fps), fps, most))

    try:
        frames, metadata = load_video(str(path), backend=decoder, sample_indices_fn=wanted)
        rate, total = float(metadata.fps or fps), int(metadata.total_num_frames)
        indices = chosen(total, rate, fps, most)
        pictures = [_image(frame) for frame in frames]
    except Exception as error:  # a decoder's own
        raise FitPruneError(f"cannot read video {path} ({decoder}: {first_line(error)}): replace the file") from None
    return Video(pictures, indices, total, rate)


def _image(frame: Any) -> Image.Image:
    """A decoded frame, [height, width, 3] or [3, height, width]."""
    import numpy as np

    levels = np.asarray(frame)
    return Image.fromarray(levels if levels.shape[-1] == 3 else levels.transpose(1, 2, 0))
