"""How a researcher measures a new table: here one spaced like squares, beside what is there, at 3 bits.

python examples/measure_table.py
"""

import flute
import numpy as np

weight = np.random.default_rng(1).standard_t(6, (1024, 2048)).astype(np.float32)  # heavier tails than the normal's

steps = np.linspace(-1, 1, 8)
tables = {
    "nf": flute.codebook("nf", 3),
    "evenly spaced": steps,
    "like squares": np.sign(steps) * np.square(steps),
    "kmeans": flute.fit_codebook(weight, 3),
}
for name, table in tables.items():
    q = flute.quantize(weight, codebook=table, group_size=64)
    share = np.bincount(q.codes().ravel(), minlength=8) / weight.size  # how often each code is used
    error = np.linalg.norm(q.dequantize() - weight) / np.linalg.norm(weight)
    entropy = -np.sum(share * np.log2(np.maximum(share, 1e-30)))
    print(f"{name:13}  relative error {error:.4f}, entropy of the codes {entropy:.2f} bits")
