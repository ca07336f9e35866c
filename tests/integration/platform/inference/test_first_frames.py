"""A first frame for a prompt, painted, found, or both."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from magicdistill.platform.config.first_frame_sections import PriorConfig
from magicdistill.platform.export.pretrained_model import Pretrained, find_pretrained
from magicdistill.platform.inference.first_frames import ImagePriors
from magicdistill.platform.inference.orders import NO_IMAGE, Order, read_orders, read_picture
from magicdistill.platform.runs.logs import ExplainedError
from tests.tiny_images import save_adapter, save_clip, save_pipeline


@pytest.fixture(scope="module")
def model() -> Pretrained:
    return find_pretrained("student-4step")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> PriorConfig:
    folder = tmp_path_factory.mktemp("sources")
    (folder / "images").mkdir()
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{seed}.png")
    (folder / "images" / "broken.png").write_text("no picture")
    pipeline = save_pipeline(folder / "pipeline")
    return PriorConfig(
        text_to_image=str(pipeline),
        index=folder / "images",
        clip=save_clip(folder / "clip"),
        ip_adapter=save_adapter(folder / "adapter", pipeline),
        image_steps=2,
    )


def changed(config: PriorConfig, **fields: Any) -> PriorConfig:
    return config.model_copy(update=fields)


def painted_only(sources: PriorConfig) -> PriorConfig:
    return changed(sources, index=None, clip=None, ip_adapter=None)


def first_frame(config: PriorConfig, model: Pretrained, order: Order) -> Path:
    with ImagePriors(config, model) as priors:
        return priors.complete(order).image


def test_a_painted_frame_is_kept_until_what_it_is_made_from_changes(sources, model, tmp_path):
    order = Order(NO_IMAGE, tmp_path / "v.mp4", prompt="a face")
    path = first_frame(painted_only(sources), model, order)
    assert path == tmp_path / "v.prior.png"
    assert read_picture(path).shape == (32, 32, 3)
    written = path.stat().st_mtime_ns
    first_frame(painted_only(sources), model, order)
    assert path.stat().st_mtime_ns == written
    before = read_picture(path)
    first_frame(painted_only(sources), model, replace(order, seed=1))
    assert not np.array_equal(read_picture(path), before)


def test_without_a_painter_the_nearest_image_is_the_frame(sources, model, tmp_path, capsys):
    config = changed(sources, text_to_image=None, ip_adapter=None)
    order = Order(NO_IMAGE, tmp_path / "v.mp4", prompt="a face")
    found = first_frame(config, model, order)
    assert config.index is not None
    with ImagePriors(config, model) as priors:
        text = priors._clip.texts(["a face"])
        names = [str(config.index / f"{seed}.png") for seed in range(3)]
        cosines = priors._clip.images([read_picture(Path(name)) for name in names]) @ text.T
    assert found == Path(names[int(cosines.argmax())])
    assert "broken.png is no picture" in capsys.readouterr().out


@pytest.mark.parametrize("by_adapter", [True, False])
def test_what_is_found_is_a_condition_of_what_is_painted(sources, model, tmp_path, by_adapter):
    order = Order(NO_IMAGE, tmp_path / "v.mp4", prompt="a face")
    alone = read_picture(first_frame(painted_only(sources), model, order))
    config = sources if by_adapter else changed(sources, ip_adapter=None)
    together = read_picture(first_frame(config, model, order))
    assert together.shape == alone.shape
    assert not np.array_equal(together, alone)


def test_a_list_may_have_prompts_in_place_of_images(sources, model, tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text('{"prompt": "a face"}\n{"image": "a.png", "prompt": "a dog"}\n')
    orders = read_orders(path, tmp_path, Order(NO_IMAGE, Path()))
    with ImagePriors(painted_only(sources), model) as priors:
        first, second = (priors.complete(o) if o.image == NO_IMAGE else o for o in orders)
    assert first.image == tmp_path / "0000.prior.png" and first.out == tmp_path / "0000.mp4"
    assert first.prompt is None  # the shipped student reads none
    assert (second.image, second.prompt) == (tmp_path / "a.png", "a dog")


def test_what_is_missing_is_said_with_where_to_get_it(sources, model, tmp_path):
    order = Order(NO_IMAGE, tmp_path / "v.mp4", prompt="a face")
    wrong = {
        "--text_to_image DIR": PriorConfig(),
        "name the CLIP-like model .* hf download": PriorConfig(index=sources.index),
        "--clip: no folder .* hf download": changed(sources, clip=tmp_path / "none"),
        "--clip: .*config.json.* hf download": changed(sources, clip=tmp_path),
        "--index: .*none is no folder": changed(sources, index=tmp_path / "none"),
        "--ip_adapter: no file .* hf download": changed(sources, ip_adapter=tmp_path / "none"),
        "--ip_adapter: it joins": changed(sources, index=None),
        "--text_to_image .*none: [^$]*hf download": PriorConfig(
            text_to_image=str(tmp_path / "none")
        ),
    }
    for reason, config in wrong.items():
        with pytest.raises(ExplainedError, match=reason):
            first_frame(config, model, order)
    with pytest.raises(ExplainedError, match="neither an image nor a prompt"):
        first_frame(sources, model, replace(order, prompt=None))
    assert not list(tmp_path.iterdir())
