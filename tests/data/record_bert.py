"""Record transformers' logits of random BERTs: python tests/data/record_bert.py  (needs the reference extra)."""
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import itertools

import bert_model

MODELS = {"one": {"num_hidden_layers": 1, "num_labels": 1}, "odd": {}, "wide": {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 129, "num_labels": 5}}
LENGTHS = [1, 2, 9, 33, 64, 80]

out = {}
for name, changes in MODELS.items():
    c = bert_model.config(**changes)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**{k: v for k, v in c.items() if k != "architectures"})).eval()
    missing, unexpected = model.load_state_dict({k: torch.tensor(v) for k, v in bert_model.weights(c, seed=1).items()}, strict=False)
    assert not unexpected and all("position_ids" in m for m in missing)
    ids, offsets, types = bert_model.batch(c, LENGTHS, seed=1)
    rows = [slice(a, b) for a, b in itertools.pairwise(offsets)]
    with torch.no_grad():
        logits = [model(torch.tensor(ids[r], dtype=torch.long)[None], token_type_ids=torch.tensor(types[r], dtype=torch.long)[None]).logits[0].numpy() for r in rows]
    out |= {f"{name}.config": json.dumps(changes), f"{name}.lengths": np.array(LENGTHS), f"{name}.logits": np.stack(logits),
            f"{name}.versions": f"torch {torch.__version__}, transformers {transformers.__version__}"}
np.savez_compressed(HERE / "bert_logits.npz", **out)
