"""Networks written to folders come back, and what does not fit is named."""

import json

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel

from magicdistill.models.locations import find_weights
from magicdistill.models.networks.transformer import (
    build_transformer,
    copy_transformer,
    load_transformer,
)
from magicdistill.models.networks.weights import save_transformer
from tests.networks import assert_same, network, weights
from tests.tiny import tiny_shapes

SHAPES = tiny_shapes()


def test_a_saved_folder_comes_back_whole_or_sharded(tmp_path):
    transformer = network()
    for folder, max_bytes in (("whole", 2**30), ("sharded", 2**15)):
        save_transformer(transformer, tmp_path / folder, torch.float32, max_file_bytes=max_bytes)
        assert_same(load_transformer(tmp_path / folder), transformer)
    assert len(list((tmp_path / "sharded").glob("*-of-*.safetensors"))) > 2
    published = HunyuanVideoTransformer3DModel.from_pretrained(tmp_path / "sharded")
    assert_same(published, transformer)


def test_a_smaller_save_leaves_no_old_shards(tmp_path):
    save_transformer(network(), tmp_path, torch.float32, max_file_bytes=2**15)
    save_transformer(network(1), tmp_path, torch.float32)
    assert_same(load_transformer(tmp_path), network(1))
    assert len(list(tmp_path.glob("*.safetensors*"))) == 1


def test_a_sharded_folder_of_diffusers_loads(tmp_path):
    transformer = network()
    transformer.save_pretrained(tmp_path, max_shard_size="30KB")
    assert (tmp_path / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert_same(load_transformer(tmp_path), transformer)


def test_a_file_without_shapes_is_refused(tmp_path):
    torch.save(weights(network()), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="shapes"):
        load_transformer(tmp_path / "weights.pt")


def test_all_keys_that_do_not_fit_are_listed(tmp_path):
    save_transformer(network(), tmp_path, torch.float32)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    state = weights(network())
    state["proj_out.extra"] = state.pop("proj_out.bias")
    state["norm_out.linear.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="3 keys") as error:
        load_transformer(tmp_path)
    for line in (
        "unknown proj_out.extra",
        "missing proj_out.bias",
        "norm_out.linear.bias has (3,), the network (48,)",
    ):
        assert line in str(error.value)


def test_missing_shards_are_named(tmp_path):
    save_transformer(network(), tmp_path, torch.float32, max_file_bytes=2**15)
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    first, *_, last = sorted(set(index["weight_map"].values()))
    for name in (first, last):
        (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{first}, {last}"):
        load_transformer(tmp_path)


def test_a_copy_has_the_weights_and_shares_none():
    transformer = build_transformer(SHAPES).requires_grad_(False)
    copied = copy_transformer(transformer)
    assert_same(copied, transformer)
    pointers = {p.data_ptr() for p in transformer.parameters()}
    assert not any(p.data_ptr() in pointers or not p.requires_grad for p in copied.parameters())


def test_weights_are_found_in_a_pipeline_folder_and_as_a_file(tmp_path):
    save_transformer(network(), tmp_path / "transformer")
    found = find_weights(str(tmp_path), "model.teacher")
    assert found == tmp_path / "transformer"
    file = found / "diffusion_pytorch_model.safetensors"
    assert find_weights(str(file), "model.teacher") == file
    with pytest.raises(FileNotFoundError, match=r"model\.vae"):
        find_weights(str(tmp_path), "model.vae")
