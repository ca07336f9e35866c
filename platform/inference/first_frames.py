"""Make first frames for prompts: painted, found in a corpus of images, or both."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from PIL import Image

from magicdistill.data_pipeline.latents.windows import fit
from magicdistill.data_pipeline.media.video import hash_content
from magicdistill.data_pipeline.progress import Bars
from magicdistill.data_pipeline.rows import digest
from magicdistill.data_pipeline.search.image_index import ImageIndex, Match
from magicdistill.models.checksums import digest_weights
from magicdistill.models.networks.conditioning.clip import ImageTextEncoder
from magicdistill.platform.config.first_frame_sections import PriorConfig
from magicdistill.platform.export.pretrained_model import Pretrained
from magicdistill.platform.inference.contact_sheets import write_png
from magicdistill.platform.inference.orders import Order, read_picture
from magicdistill.platform.inference.output_files import read_mark
from magicdistill.platform.runs.logs import ExplainedError, say

if TYPE_CHECKING:
    from magicdistill.models.diffusion.image_prior import TextToImage

FETCH_CLIP = "hf download openai/clip-vit-large-patch14 --local-dir DIR"
FETCH_PIPELINE = "hf download stabilityai/stable-diffusion-xl-base-1.0 --local-dir DIR"
FETCH_ADAPTER = "hf download h94/IP-Adapter --local-dir DIR"


class ImagePriors:
    """Makes first frames for a model; loads each network when it is first needed.

    Used as a context manager, it frees the networks at the end.
    """

    def __init__(self, config: PriorConfig, model: Pretrained) -> None:
        self.config, self.bucket = config, model.buckets[0]
        self.has_encoders = model.encoders is not None
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for network in ("_clip", "_painter"):
            self.__dict__.pop(network, None)
        torch.cuda.empty_cache()

    def complete(self, order: Order) -> Order:
        """Return an order with a first frame for its prompt.

        The prompt goes on to the video where the model reads prompts. What is painted lies beside
        the video, as .prior.png, and is not painted again. Raises ExplainedError where there is no
        prompt or no source of images, or nothing is found.
        """
        if not order.prompt:
            raise ExplainedError(f"{order.out.name}: there is neither an image nor a prompt")
        self._check_sources()
        matches = self._retrieve(order.prompt)
        if self.config.text_to_image is None:
            path = matches[0].path
            say(f"first frame  {path} (cosine {matches[0].cosine:.3f})")
        else:
            path = order.painting
            mark = self._describe(order, matches)
            if read_mark(path) != mark:
                write_png(path, Image.fromarray(self._paint(order, matches)), mark)
            say(f"first frame  {path}")
        return replace(order, image=path, prompt=order.prompt if self.has_encoders else None)

    def _check_sources(self) -> None:
        if not self.config:
            raise ExplainedError(
                "a prompt without an image: say where its first frame comes from, with "
                "--text_to_image DIR, with --index IMAGES --clip DIR, or with both"
            )
        if self.config.ip_adapter and not (self.config.text_to_image and self.config.index):
            raise ExplainedError("--ip_adapter: it joins --text_to_image and --index; give both")

    def open_index(self) -> ImageIndex:
        """Bring the index of the corpus up to date and name the files that cannot be read."""
        assert self.config.index
        index = ImageIndex(self.config.index, digest_weights(self._clip_folder))
        try:
            num_new = index.update(self._embed, Bars("image"))
        except FileNotFoundError as error:
            raise ExplainedError(f"--index: {error}") from None
        for failure in index.failures:
            say(f"left out: {failure}")
        say(f"{len(index)} images in the index of {self.config.index}, {num_new} looked at again")
        return index

    @cached_property
    def _index(self) -> ImageIndex:
        return self.open_index()

    @property
    def _clip_folder(self) -> Path:
        if self.config.clip is None:
            raise ExplainedError(
                "--index: name the CLIP-like model that compares images with prompts with --clip "
                f"DIR; one is fetched by {FETCH_CLIP}"
            )
        if not self.config.clip.is_dir():
            raise ExplainedError(f"--clip: no folder {self.config.clip}; fetch one: {FETCH_CLIP}")
        return self.config.clip

    @cached_property
    def _clip(self) -> ImageTextEncoder:
        try:
            return ImageTextEncoder.load(self._clip_folder).to(self.device)
        except (FileNotFoundError, ValueError) as error:
            raise ExplainedError(f"--clip: {error}; fetch one: {FETCH_CLIP}") from None

    @cached_property
    def _painter(self) -> "TextToImage":
        from magicdistill.models.diffusion.image_prior import TextToImage  # seconds to import

        location, adapter = str(self.config.text_to_image), self.config.ip_adapter
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        if adapter is not None and not adapter.is_file():
            raise ExplainedError(f"--ip_adapter: no file {adapter}; fetch some: {FETCH_ADAPTER}")
        try:
            return TextToImage.load(location, dtype, self.device, adapter)
        except (OSError, ValueError) as error:
            raise ExplainedError(
                f"--text_to_image {location}: {error}\nIt takes a folder of diffusers: fetch one "
                f"where there is a network, such as by {FETCH_PIPELINE}, and name it"
            ) from None

    def _embed(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        return self._clip.images(pictures).cpu().numpy()

    def _retrieve(self, prompt: str) -> list[Match]:
        """Return as many images near to a prompt as are needed; none if there is no corpus."""
        if self.config.index is None:
            return []
        count = self.config.num_references if self.config.ip_adapter else 1
        text = self._clip.texts([prompt])[0].cpu().numpy()
        matches = self._index.search(text, count)
        if not matches:
            raise ExplainedError(f"--index {self.config.index}: there is no image that can be read")
        return matches

    def _paint(self, order: Order, matches: Sequence[Match]) -> np.ndarray:
        """Return a picture (y x 3) for a prompt."""
        assert order.prompt
        height, width = self._painter.size(self.bucket.height, self.bucket.width)
        size = self.bucket.model_copy(update={"height": height, "width": width})
        try:
            return self._painter(
                order.prompt,
                (height, width),
                seed=order.seed,
                references=[fit(read_picture(match.path), size) for match in matches],
                num_steps=self.config.image_steps,
                guidance=self.config.image_guidance,
                strength=self.config.strength,
            )
        except ValueError as error:
            raise ExplainedError(f"--text_to_image {self.config.text_to_image}: {error}") from None

    def _describe(self, order: Order, matches: Sequence[Match]) -> str:
        """Return a hash of everything that decides the pixels of a painting."""
        files = [Path(str(self.config.text_to_image)), self.config.ip_adapter]
        weights = [digest_weights(path) for path in files if path and path.exists()]
        settings = self.config.model_copy(update={"index": None, "clip": None})
        found = [hash_content(match.path) for match in matches]
        return digest(order.prompt, order.seed, self.bucket, settings, weights, found)
