"""Weights of 8 and 16 bits on real weights and rows, what transformers makes of their folders, and how small they are. HARMAUG_MODELS: filled by
`harmaug models fetch minilm`; HARMAUG_TEST_DATA: a folder whose data/dev_*.jsonl hold labelled rows, and whose tokenizers/deberta-v3 is DeBERTa-v3's.
HARMAUG_TEST_SEED: a number that draws an eighth of the rows; without it all are scored, which takes three minutes of one core."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import encoder_models  # noqa: E402
from test_guard import PROMPTS, write  # noqa: E402
from tokenizer_cases import sampled  # noqa: E402

from harmaug import _C, evaluate  # noqa: E402
from harmaug.guard import Guard  # noqa: E402
from harmaug.teacher import GuardTeacher  # noqa: E402


@pytest.fixture(scope="module")
def rows():
    assert os.environ.get("HARMAUG_MODELS") and os.environ.get("HARMAUG_TEST_DATA"), "set HARMAUG_MODELS and HARMAUG_TEST_DATA (see the top of this file)"
    files = sorted((Path(os.environ["HARMAUG_TEST_DATA"]) / "data").glob("dev_*.jsonl"))
    assert files
    return sampled([json.loads(line) for file in files for line in file.read_text().strip("\n").split("\n")])


@pytest.fixture(scope="module")
def exact():
    return GuardTeacher.from_pretrained("standin", max_length=96, long="truncate").guard


@pytest.fixture(scope="module")
def scores(rows, exact):
    return exact.score([row["prompt"] for row in rows], [row.get("response") for row in rows])


@pytest.mark.parametrize("dtype, most", [("bfloat16", 0.01), ("int8", 0.025)])
def test_scores_of_real_weights(rows, exact, scores, dtype, most):
    """An eighth of the rows, 324 of them, has an AUPRC that moves by up to .007 in int8, of which nothing is left over all rows (.0002)."""
    labels = [row["label"] in (1, True, "unsafe") for row in rows]
    small = exact.to(dtype).score([row["prompt"] for row in rows], [row.get("response") for row in rows])
    assert np.abs(scores - small).max() <= most
    assert ((scores >= 0.5) == (small >= 0.5)).mean() >= 0.99
    moved = abs(evaluate.metrics(labels, scores)["auprc"] - evaluate.metrics(labels, small)["auprc"])
    assert moved <= (0.012 if os.environ.get("HARMAUG_TEST_SEED") else 0.002)


def test_transformers(tmp_path):
    """bfloat16 is loaded, int8 refused, and what was int8 loaded again once it is float32."""
    import torch
    from transformers import AutoModelForSequenceClassification as Model

    guard = Guard.from_pretrained(write(tmp_path / "guard"))
    for dtype in ("bfloat16", "int8"):
        guard.to(dtype).save_pretrained(tmp_path / dtype)
    small = Guard.from_pretrained(tmp_path / "int8")
    small.to("float32").save_pretrained(tmp_path / "wide")
    for folder in ("bfloat16", "wide"):
        model = Model.from_pretrained(tmp_path / folder, dtype=torch.float32).eval()
        ids = guard.tokenizer.encode(PROMPTS[2])
        with torch.no_grad():
            want = model(torch.tensor([ids])).logits.numpy()
        np.testing.assert_allclose(Guard.from_pretrained(tmp_path / folder, dtype="float32").logits(PROMPTS[2]), want, rtol=0, atol=2e-5)
    with pytest.raises(RuntimeError, match="(?i)mismatch"):
        Model.from_pretrained(tmp_path / "int8")


@pytest.mark.parametrize("loud", [0, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_random_deberta(tmp_path, seed, loud):
    """deberta-v3-xsmall's shape in six layers, its logits centred and of a spread of one; with channels thirty times louder than the others."""
    c = encoder_models.config("deberta-v3", hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_hidden_layers=6, vocab_size=500,
                              max_position_embeddings=512, position_buckets=256)
    rng = np.random.default_rng(seed)
    w = {name: (rng.normal(0, 0.02, shape) if len(shape) > 1 else np.full(shape, name.endswith("weight"))).astype(np.float32)
         for name, shape in encoder_models.shapes(c)}
    for name, tensor in w.items():
        if name.endswith("LayerNorm.weight"):
            tensor[5:5 + 40 * loud:40] *= 30
    batch = encoder_models.batch(c, list(range(10, 60)), seed)
    folder = encoder_models.write(tmp_path, c, w)
    margin = np.diff(_C.Encoder(folder).logits(*batch), axis=1)
    w["classifier.weight"] /= margin.std()
    folder = encoder_models.write(tmp_path, c, w)
    exact, small = (np.diff(_C.Encoder(folder, dtype=dtype).logits(*batch), axis=1) for dtype in ("float32", "int8"))
    p, q = (1 / (1 + np.exp(-(x - np.median(exact)))) for x in (exact, small))
    assert np.abs(p - q).max() <= 0.02 and ((p >= 0.5) == (q >= 0.5)).mean() >= 0.96      # of 50, half of them within the rounding of the threshold


def test_smallest_file(tmp_path):
    """deberta-v3-xsmall in int8 with word embeddings of 4 bits: 50 MB, and 80 MB of memory for a row of 32 tokens in a process without Python."""
    root = Path(__file__).parents[2]
    c = encoder_models.config("deberta-v3", vocab_size=128100, hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_hidden_layers=12,
                              max_position_embeddings=512, position_buckets=256)
    rng = np.random.default_rng(0)
    encoder_models.write(tmp_path / "wide", c, {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in encoder_models.shapes(c)})
    build = tmp_path / "build"
    subprocess.run(["make", "-s", "-C", root / "csrc", "-j2", "OPT=-O1", "OPT_KERNELS=-O1", f"BUILD={build}"], check=True)
    found = json.loads(subprocess.run([sys.executable, root / "benchmarks" / "c_memory.py", build / "harmaug-score", tmp_path / "wide", "--int8", "--embeddings",
                                       "int4", "--tokenizer", Path(os.environ["HARMAUG_TEST_DATA"]) / "tokenizers" / "deberta-v3"],
                                      check=True, capture_output=True, text=True, cwd=root).stdout)
    assert found["tokens"] == 32 and found["weights_mb"] <= 50 and found["peak_mb"] <= 80, found
