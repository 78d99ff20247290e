"""Videos, by the real video processors of transformers: they need torchvision, so `make test-video` runs this.

What is expected is made by transformers' processor, told the same frames and times, and `generate`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import processors
import pytest
import torch
from PIL import Image

import fitprune
from fitprune.cli import main
from fitprune.families import VLM
from fitprune.families.parts import has_torchvision
from fitprune.images.video import read_video
from fitprune.recipe import Recipe

pytestmark = pytest.mark.skipif(not has_torchvision(), reason="videos need torchvision: make test-video")
NAMES = ("Qwen2_5_VL", "Qwen3VL", "InternVL", "LlavaOnevision", "SmolVLM")
NOISE = np.random.default_rng(0)
FRAMES = [Image.fromarray(NOISE.integers(0, 256, (32, 48, 3), dtype=np.uint8)) for _ in range(4)]


@pytest.fixture(scope="module", params=NAMES)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return processors.for_module(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def vlm(path: Path) -> VLM:
    return fitprune.load(str(path), device="cpu")


def expected_inputs(path: Path, vlm: VLM, text: str, *images: Image.Image) -> dict[str, Any]:
    """The message with images, then four frames, two a second, as transformers' processor makes it."""
    from transformers.video_utils import VideoMetadata

    metadata = VideoMetadata(total_num_frames=4, fps=2.0, width=48, height=32, duration=2.0, frames_indices=[0, 1, 2, 3])
    frames = np.stack([np.asarray(frame) for frame in FRAMES])
    content = [*({"type": "image"} for _ in images), {"type": "video"}, {"type": "text", "text": text}]
    processor = processors.reference(path)
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    made = processor(
        text=[prompt], images=[list(images)] if images else None, videos=[frames], video_metadata=[[metadata]], do_sample_frames=False,
        return_tensors="pt",
    )  # fmt: skip
    return processors.known(vlm.model, made)


@pytest.mark.parametrize("images", [0, 1])
def test_inputs_and_answers_are_those_of_transformers(path: Path, vlm: VLM, request: pytest.FixtureRequest, images: int) -> None:
    if images and request.node.callspec.params["path"] == "SmolVLM":
        pytest.skip("SmolVLM's processor takes images or videos, not both")
    shown = [Image.fromarray(NOISE.integers(0, 256, (40, 40, 3), dtype=np.uint8))] * images
    expected = expected_inputs(path, vlm, "What happens?", *shown)
    ours = vlm.encode([(vlm.prompt("What happens?", image=bool(images), video=True), [*shown, read_video(FRAMES)])])
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-6, msg=name, check_dtype=False)
    ids = vlm.model.generate(**expected, do_sample=False, max_new_tokens=6)[:, expected["input_ids"].shape[1] :]  # type: ignore[operator]
    answer = vlm.tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip()
    assert vlm.ask("What happens?", *shown, video=FRAMES, max_new_tokens=6) == answer
    with fitprune.prune(vlm.model, fitprune.Recipe.none(vlm.cost.layers)):
        assert vlm.ask("What happens?", *shown, video=FRAMES, max_new_tokens=6) == answer


def test_frames_are_bounded(vlm: VLM) -> None:
    def tokens(**bounds: Any) -> int:
        return vlm.count_visual(vlm.encode([(vlm.prompt("?", image=False, video=True), [read_video(FRAMES * 8, **bounds)])])["input_ids"])

    assert tokens(most=2) < tokens(most=8) < tokens()
    assert tokens(most=8) == tokens(fps=2, rate=8)


def test_commands_on_a_file_of_videos_and_images(
    path: Path, vlm: VLM, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, frame in enumerate(FRAMES):
        (tmp_path / "film").mkdir(exist_ok=True)
        frame.save(tmp_path / "film" / f"{number}.png")
    lines: list[dict[str, Any]] = [
        {"question_id": 0, "video": "film", "text": "What happens?"},
        {"question_id": 1, "image": "film/0.png", "text": "What is it?"},
        {"question_id": 2, "video": "film", "text": "And first?", "max_frames": 2},
    ]
    (tmp_path / "questions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    data = ["--model-path", str(path), "--question-file", str(tmp_path / "questions.jsonl"), "--image-folder", str(tmp_path)]
    recipe = tmp_path / "half.json"
    assert main(["fit", "--by", "mass", *data, "--reduction-ratio", "0.5", "--batch-size", "1", "--output", str(recipe)]) == 0
    ask = [*data, "--recipe", str(recipe), "--max-new-tokens", "3"]
    size = "3"
    if request.node.callspec.params["path"] == "LlavaOnevision":  # which wants the videos of a batch in one block
        assert main(["eval", *ask, "--batch-size", "3", "--output", str(tmp_path / "no")]) == 2
        assert "ask about one at a time (--batch-size 1)" in capsys.readouterr().err
        size = "1"
    assert main(["eval", *ask, "--batch-size", size, "--output", str(tmp_path / "out")]) == 0
    assert main(["report", *ask, "--batch-size", size]) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    asked: list[dict[str, Any]] = [{"video": tmp_path / "film"}, {}, {"video": tmp_path / "film", "max_frames": 2}]
    for row, schedule in zip(rows, (Recipe.none(vlm.cost.layers), Recipe.load(recipe)), strict=True):
        with fitprune.prune(vlm.model, schedule) as trace:
            said, visual = [], 0
            for line, options in zip(lines, asked, strict=True):
                shown = [tmp_path / line["image"]] if "image" in line else []
                said.append(vlm.ask(line["text"], *shown, max_new_tokens=3, **options))
                visual += sum(trace.visual_tokens)
        assert [json.loads(line)["text"] for line in Path(row["answers"]).read_text().splitlines()] == said
        assert row["visual_tokens"] == pytest.approx(visual / 3)
