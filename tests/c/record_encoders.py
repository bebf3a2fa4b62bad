"""Record transformers' logits of the models of test_encoder.c: python tests/c/record_encoders.py build/test_encoder  (needs the reference extra)."""
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

NAMES = ["bert", "roberta", "electra", "distilbert", "deberta-v3", "deberta-v2", "modernbert"]
lines = [f"/* By record_encoders.py: torch {torch.__version__}, transformers {transformers.__version__}, float64. */"]
with tempfile.TemporaryDirectory() as folder:
    subprocess.run([sys.argv[1], folder], check=True)
    for name in NAMES:
        model, info = transformers.AutoModelForSequenceClassification.from_pretrained(Path(folder) / name, dtype=torch.float64, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], info
        ids, types = torch.arange(76) * 7 % 50, (torch.arange(76) % 3 == 0).long()
        given = {"token_type_ids": types} if getattr(model.config, "type_vocab_size", 0) > 0 and name != "modernbert" else {}
        with torch.no_grad():
            logits = torch.cat([model.eval()(ids[None, a:b], **{k: v[None, a:b] for k, v in given.items()}).logits for a, b in ((0, 1), (1, 6), (6, 76))])
        lines.append("{" + ", ".join(f"{x:.9f}" for x in logits.flatten().tolist()) + "}," + f"  /* {name} */")
(Path(__file__).parent / "encoder_logits.h").write_text("\n".join(lines) + "\n")
