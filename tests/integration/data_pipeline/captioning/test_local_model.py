"""Captions of a small random vision-language model of a published class, on this CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magicdistill.data_pipeline.captioning.base import Task
from magicdistill.data_pipeline.captioning.captions import Captions, CaptionScorer
from magicdistill.data_pipeline.captioning.local_model import LocalModel
from tests.tiny_vlm import save_tiny_vlm

TASK = Task("A man talks.", 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vlm(tmp_path_factory.mktemp("vlm"))


def local(folder: Path, **changes: Any) -> LocalModel:
    settings: dict[str, Any] = {"compute_dtype": "float32"}
    return LocalModel(model=folder, **(settings | changes))


def frames(seed: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (12, 16, 3), dtype=np.uint8) for _ in range(count)]


def test_clips_of_unlike_lengths_are_described_together_as_they_are_alone(folder: Path):
    clips = [frames(0, 1), frames(1, 3), frames(2, 2)]
    together = local(folder, batch_size=3).open(TASK, None).write(clips)
    alone = local(folder, batch_size=1).open(TASK, None)
    assert [a.text for a in together] == [alone.write([clip])[0].text for clip in clips]
    for answer, clip in zip(together, clips, strict=True):
        assert answer.text and not answer.failure
        assert answer.tokens_in == 4 * len(clip) + len(TASK.prompt.split()) + 2  # full stop, start
        assert 1 <= answer.tokens_out <= TASK.max_tokens
        assert answer.is_cut == (answer.tokens_out == TASK.max_tokens)
        assert answer.requests == 1 and answer.seconds > 0


def test_a_shorter_limit_cuts_the_same_words(folder: Path):
    (long,) = local(folder).open(TASK, None).write([frames(0, 2)])
    (short,) = local(folder).open(Task(TASK.prompt, 3), None).write([frames(0, 2)])
    assert short.is_cut and short.tokens_out == 3
    assert long.text.startswith(short.text)


def version(folder: Path, **changes: Any) -> str:
    return CaptionScorer(captions=Captions(writer=local(folder), **changes)).version


def test_a_version_names_weights_prompt_and_frames_but_no_price(folder: Path, tmp_path: Path):
    copy = tmp_path / folder.name
    save_tiny_vlm(copy)
    assert version(copy) == version(folder) == version(folder, price_in=3.0, existing="replace")
    others = [
        version(save_tiny_vlm(tmp_path / "seed" / folder.name, seed=1)),
        version(folder, prompt="Other words."),
        version(folder, num_frames=2),
        version(folder, long_side=64),
        version(folder, max_tokens=9),
    ]
    assert len({version(folder), *others}) == 6


def test_a_folder_without_a_model_is_named_with_the_fix(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"captions\.writer\.model.*no config\.json"):
        local(tmp_path).identity()
