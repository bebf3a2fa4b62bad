"""Record transformers' logits of random encoders of every family: python tests/data/record_encoders.py  (needs the reference extra)."""
import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import encoder_models

LENGTHS = [1, 2, 9, 33, 64, 65, 85]
OUT = {"lengths": np.array(LENGTHS), "versions": f"torch {torch.__version__}, transformers {transformers.__version__}"}

for name in encoder_models.FAMILIES:
    c = encoder_models.config(name)
    with tempfile.TemporaryDirectory() as folder:
        encoder_models.write(Path(folder), c, encoder_models.weights(c, seed=1))
        model, info = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], (name, info)
    ids, offsets, types = encoder_models.batch(c, LENGTHS, seed=1)
    with torch.no_grad():
        rows = []
        for a, b in itertools.pairwise(offsets):
            given = {"input_ids": torch.tensor(ids[a:b], dtype=torch.long)[None]}
            if c.get("type_vocab_size"):
                given["token_type_ids"] = torch.tensor(types[a:b], dtype=torch.long)[None]
            rows.append(model.eval()(**given).logits[0].numpy())
    OUT[name] = np.stack(rows)
np.savez_compressed(HERE / "encoder_logits.npz", **OUT)
