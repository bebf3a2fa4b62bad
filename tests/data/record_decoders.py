"""Record transformers' logits of random decoders of every family: python tests/data/record_decoders.py  (needs the reference extra)."""
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import decoder_models

IDS = np.random.default_rng(2).integers(0, 97, 90)      # over two attention tiles, past every window
ROWS = [0, 32, 89]
OUT = {"ids": IDS, "rows": np.array(ROWS), "versions": f"torch {torch.__version__}, transformers {transformers.__version__}"}

for name in decoder_models.CASES:
    c = decoder_models.config(name)
    with tempfile.TemporaryDirectory() as folder:
        decoder_models.write(Path(folder), c, decoder_models.weights(c))
        model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], (name, info)
    with torch.no_grad():
        OUT[name] = model.eval()(torch.from_numpy(IDS)[None]).logits[0, ROWS].numpy()
np.savez_compressed(HERE / "decoder_logits.npz", **OUT)
