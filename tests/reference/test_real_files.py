"""The two pinned models, as the original packages read them. Real weights: HARMAUG_MODELS, filled by `harmaug models fetch`."""
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from harmaug import _C, models


@pytest.fixture(scope="module")
def folder():
    assert os.environ.get("HARMAUG_MODELS"), "set HARMAUG_MODELS to a folder filled by `harmaug models fetch minilm smollm2`"
    return Path(os.environ["HARMAUG_MODELS"])


def test_registry_matches_what_is_there(folder):
    for name in models.REGISTRY:
        shown = models.show(name, verify=True)
        assert shown["damage"] is None and Path(shown["path"]).is_relative_to(folder)


def test_minilm(folder):
    path = folder / "minilm" / "model.safetensors"
    ours, theirs = _C.TensorFile(folder / "minilm"), load_file(path)
    assert sorted(ours.names) == sorted(theirs)
    for name, tensor in theirs.items():
        assert ours.info(name)[1] == tuple(tensor.shape)
        if tensor.is_floating_point():
            assert torch.equal(torch.from_numpy(ours.read(name)), tensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_of_torch(folder, tmp_path, dtype):
    """torch's rounding of real weights is ours, and torch reads what we write."""
    whole = {k: v for k, v in load_file(folder / "minilm" / "model.safetensors").items() if v.is_floating_point()}
    save_file({k: v.to(dtype) for k, v in whole.items()}, tmp_path / "theirs.safetensors")
    _C.write_safetensors(tmp_path / "ours.safetensors", {k: v.numpy() for k, v in whole.items()}, dtype="BF16" if dtype == torch.bfloat16 else "F16")
    ours, theirs = load_file(tmp_path / "ours.safetensors"), _C.TensorFile(tmp_path / "theirs.safetensors")
    for name, value in whole.items():
        assert ours[name].dtype == dtype and torch.equal(ours[name], value.to(dtype))
        assert torch.equal(torch.from_numpy(theirs.read(name)), value.to(dtype).float())


def test_smollm2(folder):
    path = models.resolve("smollm2")
    ours, theirs = _C.TensorFile(path), gguf.GGUFReader(path)
    assert ours.names == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        kind, shape = ours.info(tensor.name)
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert kind == tensor.tensor_type.name and shape == tuple(reversed(tensor.shape.tolist()))
        np.testing.assert_array_equal(ours.read(tensor.name).view("u4"), expected.astype("f4").view("u4"))
    metadata = ours.metadata
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            assert metadata[key] == field.contents()
