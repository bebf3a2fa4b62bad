"""Decoders of every family beside transformers, and their GGUF files beside llama.cpp: random weights, long inputs."""
import decoder_models
import llama_cpp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from harmaug import _C


@pytest.mark.parametrize("name", decoder_models.CASES)
@pytest.mark.parametrize("seed", [1, 2])
def test_families_match_transformers(tmp_path, name, seed):
    c = decoder_models.config(name)
    folder = decoder_models.write(tmp_path, c, decoder_models.weights(c, seed))
    ids = np.random.default_rng(seed).integers(0, 97, 160)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        want = model.eval()(torch.from_numpy(ids)[None]).logits[0].numpy()
    got = _C.CausalLM(folder, dtype="float32").logits(ids)
    assert np.abs(got - want).max() <= 2e-4 * np.abs(want).max()


@pytest.mark.parametrize("name", decoder_models.AS_GGUF)
def test_gguf_matches_llama_cpp(tmp_path, name):
    """llama.cpp reads GELU from a table of half-precision numbers: gemma, gemma2 and gpt2 have its error."""
    size = {"n_embd": 64, "n_head": 4} if name == "gpt2" else {"hidden_size": 48, "intermediate_size": 96, "vocab_size": 128}
    c = decoder_models.config(name, **size)

    def keys(out):
        out.add_tokenizer_model("no_vocab")
        out.add_vocab_size(c["vocab_size"])

    path = decoder_models.write_gguf(tmp_path / "m.gguf", c, decoder_models.weights(c, 3), extra=keys)
    ids = np.random.default_rng(3).integers(0, c["vocab_size"], 150)
    theirs = llama_cpp.Llama(str(path), n_ctx=160, n_batch=160, n_ubatch=160, logits_all=True, type_k=0, type_v=0, verbose=False)
    theirs.eval(ids.tolist())
    want = np.array(theirs.scores[:len(ids)])
    got = _C.CausalLM(path, dtype="float32").logits(ids)
    assert np.abs(got - want).max() <= (2e-3 if name in ("gemma", "gemma2", "gpt2") else 2e-4) * np.abs(want).max()
    theirs.close()
