"""Records ten steps of torch on the small BERT of tests/tiny_bert.py: python tests/data/record_training.py

Writes training.npz beside itself: losses and gradient norms of each step and the weights after the last, for full training and for LoRA.
Made with torch 2.13.0 and transformers 5.23.0.
"""
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "reference")]
import tiny_bert
import torch_training

if __name__ == "__main__":
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        tiny_bert.write(Path(folder))
        for case, options in torch_training.CASES.items():
            losses, norms, weights, _ = torch_training.run(folder, **options)
            out |= {f"{case}.losses": losses, f"{case}.norms": norms}
            if case != "clipped":
                out |= {f"{case}.{name}": w.astype(np.float32) for name, w in weights.items()}
    np.savez_compressed(HERE / "training.npz", **out)
