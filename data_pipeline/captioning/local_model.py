"""Captions of a vision-language model of transformers, in this process."""

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

from pydantic import Field, SecretStr

from magicdistill.data_pipeline.captioning.base import Answer, CaptionWriter, Task
from magicdistill.data_pipeline.rows import Array
from magicdistill.data_pipeline.scorers.base import Gpus, Weights
from magicdistill.models.checksums import digest_ends

COUNTED = (".json", ".safetensors", ".jinja", ".model", ".txt")
"""Suffixes of the files that decide what a model writes."""


class LocalModel(CaptionWriter):
    """A vision-language model in a folder as transformers saves it, such as SmolVLM."""

    kind: Literal["local"] = "local"
    model: Weights
    """Local folder of the model and its processor; its content, not its place, is its version."""
    batch_size: int = Field(default=4, ge=1)
    """Clips that are described together."""
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Numbers in which the model computes."""
    num_gpus_per_actor: Gpus = 0.0
    """GPUs that each writing process reserves; 0 writes on CPUs."""

    @property
    def num_gpus(self) -> float:
        """GPUs that each process reserves."""
        return self.num_gpus_per_actor

    def identity(self) -> Mapping[str, object]:
        """Return the folder's name, a hash of its files and the numbers' format.

        Raises:
            FileNotFoundError: if there is no model in the folder.
        """
        if not (self.model / "config.json").is_file():
            raise FileNotFoundError(
                f"data.captions.writer.model: {self.model} has no config.json: give the folder of "
                "a vision-language model as transformers saves it"
            )
        files = (path for path in self.model.iterdir() if path.suffix in COUNTED)
        digest = digest_ends(self.model, sorted(files))
        return {"model": self.model.name, "files": digest, "compute_dtype": self.compute_dtype}

    def open(self, task: Task, key: SecretStr | None) -> "LocalWriter":
        """Load the model."""
        return LocalWriter(self, task)


class LocalWriter:
    """Describes batches of clips by the most probable words."""

    def __init__(self, config: LocalModel, task: Task) -> None:
        import torch  # seconds to import, as transformers
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._config, self._task, self._torch = config, task, torch
        folder, options = config.model, {"local_files_only": True}
        self._processor: Any = AutoProcessor.from_pretrained(folder, **options)
        self._processor.tokenizer.padding_side = "left"  # what is written follows the last token
        dtype = getattr(torch, config.compute_dtype)
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, **options)
        self._model = model.to("cuda" if config.num_gpus_per_actor else "cpu").eval()

    def write(self, clips: Iterable[Sequence[Array]]) -> Sequence[Answer]:
        """Return an answer for each clip, in order."""
        coming, answers = iter(clips), list[Answer]()
        while batch := [*islice(coming, self._config.batch_size)]:
            answers += self._describe(batch)
        return answers

    def _describe(self, clips: Sequence[Sequence[Array]]) -> list[Answer]:
        start_s = time.monotonic()
        inputs = self._processor(
            text=[self._prompt(len(frames)) for frames in clips],
            images=[[*frames] for frames in clips],
            padding=True,
            return_tensors="pt",
        ).to(self._model.device)
        floats = {k: v.to(self._model.dtype) for k, v in inputs.items() if v.is_floating_point()}
        with self._torch.inference_mode():
            found = self._model.generate(
                **(dict(inputs) | floats), max_new_tokens=self._task.max_tokens, do_sample=False
            )
        written = found[:, inputs["input_ids"].shape[1] :].tolist()
        seconds = (time.monotonic() - start_s) / len(clips)
        lengths = inputs["attention_mask"].sum(1).tolist()
        return [
            self._answer(tokens, length, seconds)
            for tokens, length in zip(written, lengths, strict=True)
        ]

    def _prompt(self, num_frames: int) -> str:
        content = [{"type": "image"}] * num_frames
        content.append({"type": "text", "text": self._task.prompt})
        turns = [{"role": "user", "content": content}]
        return self._processor.apply_chat_template(turns, add_generation_prompt=True)

    def _answer(self, tokens: Sequence[int], num_read: int, seconds: float) -> Answer:
        ends = self._model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else {*(ends or ())}
        end = next((place for place, token in enumerate(tokens) if token in ends), None)
        text = self._processor.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        text = " ".join(text.split())
        failure = "" if text else "the model wrote no text"
        num_written = len(tokens) if end is None else end + 1
        return Answer(text, failure, end is None, num_read, num_written, 1, seconds)
