"""Finding weights, and telling networks of other pipelines from those that are supported."""

import json
from pathlib import Path

import pytest

from magicdistill.models.locations import find_weights
from magicdistill.models.paths import PathError
from magicdistill.platform.export.pretrained_model import find_pretrained
from magicdistill.platform.runs.logs import ExplainedError


def pipeline(folder: Path, name: str, **parts: str) -> Path:
    """Write what names the classes of a diffusers pipeline and its parts."""
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
    for part, cls in parts.items():
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps({"_class_name": cls}))
    return folder


FLUX = {"transformer": "FluxTransformer2DModel", "vae": "AutoencoderKL"}


def test_the_vae_of_another_pipeline_is_named_with_the_one_that_is_supported(
    tmp_path: Path,
) -> None:
    folder = pipeline(tmp_path, "FluxPipeline", **FLUX)
    for place in (folder, folder / "vae"):
        with pytest.raises(
            PathError, match=r"model\.vae .*a AutoencoderKL.*AutoencoderKLHunyuanVideo"
        ):
            find_weights(str(place), "model.vae")


def test_a_pipeline_without_such_a_part_is_named(tmp_path: Path) -> None:
    folder = pipeline(tmp_path, "StableDiffusionPipeline", unet="UNet2DConditionModel")
    with pytest.raises(PathError, match=r"model\.teacher .*a StableDiffusionPipeline"):
        find_weights(str(folder), "model.teacher")
    with pytest.raises(PathError, match=r"--model .*a StableDiffusionPipeline"):
        find_pretrained(str(folder))


def test_supported_networks_and_those_that_do_not_say_their_class_are_found(
    tmp_path: Path,
) -> None:
    names = {"transformer": "HunyuanVideoTransformer3DModel", "vae": "AutoencoderKLHunyuanVideo"}
    folder = pipeline(tmp_path, "HunyuanVideoImageToVideoPipeline", **names)
    assert find_weights(str(folder), "model.vae") == folder / "vae"
    assert find_weights(str(folder), "model.teacher") == folder / "transformer"
    (folder / "transformer" / "config.json").write_text("{}")
    assert find_weights(f"file://{folder}", "model.teacher") == folder / "transformer"


def test_a_foreign_model_is_refused_by_the_flag(tmp_path: Path) -> None:
    folder = pipeline(tmp_path, "FluxPipeline", **FLUX)
    with pytest.raises(ExplainedError, match=r"of FluxTransformer2DModel"):
        find_pretrained(str(folder))
