"""A corpus of images that is searched by embeddings."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magicdistill.data_pipeline.search import image_index
from magicdistill.data_pipeline.search.image_index import ImageIndex

COLOURS = {"red": (200, 10, 10), "green": (10, 200, 10), "blue": (10, 10, 200)}


class Embedder:
    """The mean colour as a direction."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        self.seen += len(pictures)
        means = np.stack([picture.mean((0, 1)) for picture in pictures])
        return means / np.linalg.norm(means, axis=1, keepdims=True)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "below").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (9, 7), colour).save(tmp_path / "below" / f"{name}.png")
    return tmp_path


def test_the_nearest_by_cosine_comes_first(corpus):
    index = ImageIndex(corpus, "model")
    assert index.update(Embedder()) == len(index) == 3
    query = np.array([0.6, 0.0, 0.8])
    found = index.search(query, 2)
    assert [match.path.stem for match in found] == ["blue", "red"]
    expected = Embedder()([np.full((1, 1, 3), COLOURS["blue"])])[0] @ query
    assert found[0].cosine == pytest.approx(expected, rel=1e-5)
    assert len(index.search(query, 9)) == 3


def test_only_what_is_new_or_changed_is_embedded(corpus, monkeypatch):
    monkeypatch.setattr(image_index, "MAX_FILES", 2)
    embedder = Embedder()
    ImageIndex(corpus, "model").update(embedder)
    assert ImageIndex(corpus, "model").update(embedder) == 0
    Image.new("RGB", (9, 7), "white").save(corpus / "white.jpg")
    os.utime(corpus / "below" / "red.png", (1, 1))
    (corpus / "below" / "green.png").unlink()
    index = ImageIndex(corpus, "model")
    assert index.update(embedder) == 2
    assert embedder.seen == 5
    found = {match.path.stem for match in index.search(np.array([0.0, 1.0, 0.0]), 9)}
    assert found == {"red", "blue", "white"}
    Image.new("RGB", (9, 7), (9, 9, 9)).save(corpus / "grey.jpg")
    assert ImageIndex(corpus, "model").update(embedder) == 1
    assert len(list(index.folder.iterdir())) == 1  # made one of more than two
    assert ImageIndex(corpus, "model").update(embedder) == 0
    assert ImageIndex(corpus, "other model").update(embedder) == 4


def test_what_was_written_before_an_interruption_is_not_embedded_again(corpus, monkeypatch):
    monkeypatch.setattr(image_index, "NUM_WRITTEN", 2)
    embedder = Embedder()

    def interrupt(stage: str, done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ImageIndex(corpus, "model").update(embedder, interrupt)
    assert embedder.seen == 3
    assert ImageIndex(corpus, "model").update(embedder) == 1


def test_a_corrupt_image_is_named_and_left_out(corpus):
    whole = (corpus / "below" / "red.png").read_bytes()
    (corpus / "cut.png").write_bytes(whole[: len(whole) * 2 // 3])
    (corpus / "text.jpg").write_text("no picture")
    (corpus / "list.txt").write_text("no picture either, and does not claim to be one")
    index = ImageIndex(corpus, "model")
    assert index.update(Embedder()) == 5
    assert len(index) == 3
    assert [Path(line.split()[0]).name for line in index.failures] == ["cut.png", "text.jpg"]
    again = ImageIndex(corpus, "model")
    assert again.update(Embedder()) == 0
    assert again.failures == index.failures


def test_an_empty_corpus_has_nothing_and_none_is_an_error(tmp_path):
    index = ImageIndex(tmp_path, "model")
    assert index.update(Embedder()) == 0
    assert index.search(np.ones(3), 1) == []
    with pytest.raises(FileNotFoundError, match="no folder"):
        ImageIndex(tmp_path / "none", "model").update(Embedder())
