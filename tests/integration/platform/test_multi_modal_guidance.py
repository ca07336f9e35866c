"""First frames go through a small LLaVA into the cache, a training, a validation and a video."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoImageToVideoPipeline
from einops import rearrange
from PIL import Image
from torch import Tensor

from magicdistill.data_pipeline.config import DataConfig, Prompts
from magicdistill.data_pipeline.latents.cache import (
    LatentCache,
    committed_rows,
    publish,
)
from magicdistill.data_pipeline.latents.text_shards import committed_texts
from magicdistill.data_pipeline.latents.windows import read_windows
from magicdistill.data_pipeline.media.video import decode, write_mp4
from magicdistill.data_pipeline.rows import ClipRow, Video, clips_to_table
from magicdistill.data_pipeline.sources.portrait_world.world import render_clip
from magicdistill.data_pipeline.stages.embed import prompts_fingerprint
from magicdistill.data_pipeline.stages.embed_first_frames import (
    EmbedFirstFrames,
    EmbedFirstFramesJob,
    first_frame_keys,
)
from magicdistill.data_pipeline.stages.encode import Encode, EncodeJob, facts_of
from magicdistill.data_pipeline.stages.score import score_video
from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.networks.autoencoder.vae import VideoVae
from magicdistill.models.networks.conditioning.conditions import NULL_PROMPT
from magicdistill.models.networks.conditioning.prompt_encoder import IMAGE_TEMPLATE, PromptEncoder
from magicdistill.models.networks.transformer import load_transformer
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.data.batches import LatentBatches, collate, deal
from magicdistill.platform.export.diffusers_pipeline import stock_scheduler, stock_vae
from magicdistill.platform.export.pretrained_model import ASSETS, find_pretrained
from magicdistill.platform.inference.orders import Order, plan_windows
from magicdistill.platform.inference.sample_video import VideoSampler, describe
from magicdistill.platform.inference.web_page import Studio
from magicdistill.platform.runs.logs import ExplainedError
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.worker import Worker
from tests.tiny_encoders import NUM_IMAGE_TOKENS, PROMPTS, tiny_encoder
from tests.tiny_run import tiny_recipe

TINY = ASSETS / "portrait-tiny"
STRIDE, NUM_TOKENS = 2, 96
SEEN = (NUM_IMAGE_TOKENS // STRIDE, 64)
"""Image tokens of a sample."""
PICTURE = np.asarray(Image.open(TINY / "face.png").convert("RGB").resize((64, 64))).copy()
CAPTIONS = {"a": PROMPTS[0], "b": PROMPTS[1], "c": NULL_PROMPT, "d": "an <image> of a man"}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    tiny_encoder(64, sees_images=True).save(folder)
    return folder


@pytest.fixture(scope="module")
def config(encoders: Path) -> DataConfig:
    source: Any = {"kind": "folder", "path": ".", "license": "CC0", "mixture": "portrait"}
    prompts = Prompts(
        encoder=str(encoders),
        num_tokens=NUM_TOKENS,
        drop=0.5,
        image_token_stride=STRIDE,
        stored_dtype="float32",
    )
    return DataConfig(sources=(source,), windows_per_clip=2, flip=True, prompts=prompts)


@pytest.fixture(scope="module")
def clips(config: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> list[ClipRow]:
    """Clips with captions, of which the encoder cannot take the last."""
    folder, found = tmp_path_factory.mktemp("clips"), []
    for seed, (name, caption) in enumerate(CAPTIONS.items()):
        path = folder / f"{name}.mp4"
        write_mp4(path, render_clip(seed), 24)
        video = Video(name, name, path.as_uri(), str(path), "1-1", "CC0", "portrait")
        found += score_video(replace(video, caption=caption), path, config.measures)
    return found


@pytest.fixture(scope="module")
def cache(config: DataConfig, clips: list[ClipRow], tmp_path_factory) -> LatentCache:
    """Twelve rows: three clips, two windows each, and their mirror images."""
    root, vae = tmp_path_factory.mktemp("latents"), VideoVae.load(TINY / "vae").fingerprint
    assert config.prompts is not None
    encoder = prompts_fingerprint(config.prompts)
    reports = []
    for stage in (
        Encode(EncodeJob(config, TINY / "vae", vae, root)),
        EmbedFirstFrames(EmbedFirstFramesJob(config, encoder, root)),
    ):
        reports.append(stage(clips_to_table(clips))["failure"].to_pylist())
        stage._sandbox.close()
    assert reports[0] == [""] * 4 and reports[1][:3] == [""] * 3
    assert "<image>" in reports[1][3]
    known, texts = committed_rows(root), committed_texts(root)
    entries = [
        known[facts.key] | {"text_key": key}
        for clip in clips[:3]
        for facts, key in zip(
            facts_of(clip, config, vae), first_frame_keys(clip, config, encoder), strict=True
        )
    ]
    assert {entry["text_key"] for entry in entries} == texts.keys()
    return LatentCache(publish(root, entries, config.null_text))


@pytest.fixture(scope="module")
def without(config: DataConfig, cache: LatentCache) -> LatentCache:
    """The same rows under the null prompt that no encoder made."""
    root = cache._directory.parent.parent
    return LatentCache(publish(root, [*committed_rows(root).values()], config.null_text))


def seeing(encoders: Path) -> PromptEncoder:
    encoder = PromptEncoder.load(
        encoders, torch.float32, num_text_tokens=NUM_TOKENS, image_token_stride=STRIDE
    )
    assert isinstance(encoder, PromptEncoder)
    return encoder


def test_the_cache_holds_what_the_encoder_says_of_every_windows_first_frame(
    cache: LatentCache, clips: list[ClipRow], config: DataConfig, encoders: Path
) -> None:
    windows = np.concatenate(list(read_windows(clips[:3], config.bucket, 2)))[:, 0]
    frames = np.stack([side for one in windows for side in (one, one[:, ::-1])])
    images = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2) / 127.5 - 1
    captions = [clip.video.caption for clip in clips[:3] for _ in range(4)]
    encoder = seeing(encoders)
    batch = collate(cache, range(12), range(12), "cpu")
    assert batch.conditions is not None and batch.null is not None
    for found, fresh in (
        (batch.conditions, encoder(captions, images)),
        (batch.null, encoder.null(12, images)),
    ):
        assert found.image_tokens is not None and found.image_tokens.shape == (12, *SEEN)
        assert torch.equal(found.text_mask, fresh.text_mask)
        valid = fresh.text_mask
        torch.testing.assert_close(found.text[valid], fresh.text[valid], atol=1e-4, rtol=1e-4)
        for name in ("pooled", "image_tokens"):
            torch.testing.assert_close(
                getattr(found, name), getattr(fresh, name), atol=1e-4, rtol=1e-4
            )
    images = (batch.null.image_tokens, batch.conditions.image_tokens)
    torch.testing.assert_close(*images, rtol=0, atol=0)
    assert not torch.equal(batch.null.text[0], batch.conditions.text[0])
    assert torch.equal(batch.null.text[11], batch.conditions.text[11])


def test_a_dropped_caption_leaves_its_own_first_frame(cache: LatentCache) -> None:
    batch = collate(cache, [0, 4], [0, 4], "cpu", [True, False])
    assert batch.conditions is not None and batch.null is not None
    assert torch.equal(batch.conditions.text[0], batch.null.text[0])
    assert not torch.equal(batch.conditions.text[1], batch.null.text[1])
    images = (batch.null.image_tokens, batch.conditions.image_tokens)
    torch.testing.assert_close(*images, rtol=0, atol=0)


def test_other_frames_captions_strides_and_encoders_have_other_keys(
    clips: list[ClipRow], config: DataConfig
) -> None:
    clip, prompts = clips[0], config.prompts
    assert prompts is not None
    video = replace(clip.video, caption="another")
    other = config.model_copy(update={"prompts": prompts.model_copy(update={"drop": 0.0})})
    wider = prompts.model_copy(update={"image_token_stride": 4})
    assert first_frame_keys(clip, config, "f") == first_frame_keys(clip, other, "f")
    keys = [
        *first_frame_keys(clip, config, "f"),
        *first_frame_keys(clip, config, "g"),
        *first_frame_keys(replace(clip, content_hash="other"), config, "f"),
        *first_frame_keys(replace(clip, video=video), config, "f"),
        *first_frame_keys(clip, config.model_copy(update={"prompts": wider}), "f"),
    ]
    assert len(set(keys)) == len(keys) == 20


def recipe_of(method: dict[str, Any], config: DataConfig) -> Recipe:
    """Return a training of one cycle that shows a held-out clip after it."""
    values = tiny_recipe(
        2,
        schedule={"num_cycles": 1, "sample_every": 1},
        data={"prompts": config.prompts and config.prompts.model_dump()},
    ).model_dump()
    values["evaluation"] |= {"num_shown": 1, "num_scored": None, "num_clips": 1}
    values["evaluation"]["data"] |= {"prompts": values["data"]["prompts"]}
    values |= {"method": method, "health": {"action": "off"}, "name": "seeing"}
    return Recipe.model_validate(values)


METHODS = {
    "finetune": {"name": "finetune"},
    "magic": {"name": "magic", "real_guidance": 4.5, "num_fake_updates": 1, "lora": {"rank": 2}},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_training_and_its_validation_see_the_image_tokens(
    method: str, cache: LatentCache, config: DataConfig, tmp_path: Path
) -> None:
    place = cache._directory
    run = RunDirectory.create(tmp_path, recipe_of(METHODS[method], config))
    worker = Worker(run, place, place, rank=0, world_size=1)
    seen: set[tuple[bool, tuple[int, ...] | None]] = set()

    def look(module: Any, inputs: tuple[Any, ...]) -> None:
        tokens = inputs[2].image_tokens
        seen.add((torch.is_grad_enabled(), None if tokens is None else tuple(tokens.shape[1:])))

    worker.method.modules["generator"].register_forward_pre_hook(look)
    worker.run_all()
    assert seen == {(True, SEEN), (False, SEEN)}  # of the update, and of validation or rollout
    (row,) = run.metrics()
    assert all(np.isfinite(value) for value in row.values())
    assert (run.samples / "00001.png").exists() or list(run.samples.glob("*.png"))


def test_a_cache_without_image_tokens_is_refused(
    cache: LatentCache, without: LatentCache, config: DataConfig
) -> None:
    recipe = recipe_of(METHODS["finetune"], config)
    positions = deal(recipe.schedule, 1, rank=0, world_size=1)
    LatentBatches(cache._directory, positions, 0, "cpu", config)
    with pytest.raises(ExplainedError, match=r"data\.prompts\.image_token_stride 2: the latent"):
        LatentBatches(without._directory, positions, 0, "cpu", config)


@pytest.fixture(scope="module")
def sampler(encoders: Path) -> Iterator[VideoSampler]:
    model = replace(find_pretrained("teacher"), encoders=encoders, image_token_stride=STRIDE)
    yield VideoSampler(model.changed(num_steps=3), "cpu")


def our_frames(sampler: VideoSampler, prompt: str | None, picture: np.ndarray = PICTURE) -> Tensor:
    order = Order(Path(), Path(), prompt=prompt)
    windows = plan_windows(order, sampler.model.buckets[0])
    return next(iter(sampler.parts(picture, order, windows)))


def published(sampler: VideoSampler) -> Any:
    """Return diffusers' pipeline with the same networks."""
    encoder = sampler.encoder
    assert encoder is not None
    build: Any = HunyuanVideoImageToVideoPipeline
    pipeline = build(
        encoder.language,
        encoder.tokenizer,
        load_transformer(sampler.model.transformer),
        stock_vae(sampler.vae),
        stock_scheduler(sampler.model.sampler),
        encoder.clip,
        encoder.clip_tokenizer,
        encoder.image_processor,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_video_is_that_of_the_published_pipeline_of_the_same_frame_and_prompt(
    sampler: VideoSampler, guidance: float
) -> None:
    sampler.model = sampler.model.changed(guidance=guidance)
    encoder, picture = sampler.encoder, Image.fromarray(PICTURE)
    assert encoder is not None
    ids = encoder.tokenizer(IMAGE_TEMPLATE.text)["input_ids"]
    start = ids.index(encoder.tokenizer.convert_tokens_to_ids("<image>"))
    template = {
        "template": IMAGE_TEMPLATE.text,
        "crop_start": IMAGE_TEMPLATE.crop_start,
        "image_emb_len": NUM_IMAGE_TOKENS,
        "image_emb_start": start,
        "image_emb_end": start + NUM_IMAGE_TOKENS,
    }
    pipeline = published(sampler)
    with torch.no_grad():
        null = pipeline.encode_prompt(picture, [NULL_PROMPT], prompt_template=template)
    names = ("embeds", "attention_mask")
    negative = {f"negative_prompt_{name}": null[i] for name, i in zip(names, (0, 2), strict=True)}
    first = rearrange(torch.from_numpy(PICTURE).float() / 127.5 - 1, "y x c -> 1 c 1 y x")
    noise = Rng(0, -1, -1, [0]).normal("noise", (16, 5, 8, 8))
    found = pipeline(
        picture,
        PROMPTS[0],
        **negative,
        negative_pooled_prompt_embeds=null[1],
        prompt_template=template,
        **{"num_frames": 17, "height": 64, "width": 64, "num_inference_steps": 3},
        true_cfg_scale=guidance,
        latents=(noise - 0.001 * sampler.vae.encode(first)) / 0.999,
        output_type="pt",
    )
    stock = rearrange(found.frames, "b t c y x -> b c t y x") * 2 - 1
    torch.testing.assert_close(stock, our_frames(sampler, PROMPTS[0])[:, :, 4:], atol=1e-3, rtol=0)


def test_the_null_prompt_of_a_model_that_sees_the_frame_sees_it_too(sampler: VideoSampler) -> None:
    """Also in later windows of a long video, each of its own first frame."""
    frames: list[Tensor] = []
    network = sampler.velocity.register_forward_pre_hook(
        lambda module, inputs: frames.append(inputs[2].image_tokens)
    )
    order = Order(Path(), Path(), seconds=1.0)
    windows = plan_windows(order, sampler.model.buckets[0])
    assert len(list(sampler.parts(PICTURE, order, windows))) == 2
    network.remove()
    first, *_, last = frames
    assert first.shape[1:] == SEEN and not torch.allclose(first[:1], last[:1])


def test_the_page_takes_a_prompt_where_the_model_reads_one(encoders: Path, tmp_path: Path) -> None:
    student = replace(
        find_pretrained("student-4step"), encoders=encoders, image_token_stride=STRIDE
    )
    studio, face = Studio(student), (TINY / "face.png").read_bytes()
    assert studio.reads_prompts
    frames = []
    for prompt in (None, PROMPTS[1]):
        (tmp_path / "v.mp4").write_bytes(studio.make(face, 1, prompt=prompt).mp4)
        frames.append(np.stack(list(decode(tmp_path / "v.mp4"))))
    assert not np.array_equal(*frames)


def test_what_shapes_the_image_tokens_names_the_video(
    sampler: VideoSampler, encoders: Path
) -> None:
    order = Order(TINY / "face.png", Path("v.mp4"))
    names = {
        describe(replace(sampler.model, image_token_stride=stride), order)
        for stride in (None, 2, 4)
    }
    assert len(names) == 3


def test_encoders_that_cannot_see_are_refused(sampler: VideoSampler, tmp_path: Path) -> None:
    tiny_encoder(64).save(tmp_path)
    blind = VideoSampler(replace(sampler.model, encoders=tmp_path), "cpu")
    with pytest.raises(ExplainedError, match="which these encoders cannot see"):
        our_frames(blind, None)
