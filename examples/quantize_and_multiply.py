"""The Python package: a matrix at 4, 3 and 2 bits, and the error of its product.

python examples/quantize_and_multiply.py
"""

import flute
import numpy as np

rng = np.random.default_rng(1)
weight = 0.02 * rng.standard_normal((1024, 2048), np.float32)  # 1024 output features, 2048 input features
x = rng.standard_normal((3, 2048), np.float32)  # 3 tokens
exact = x.astype(np.float64) @ weight.T.astype(np.float64)

for bits in (4, 3, 2):
    q = flute.quantize(weight, bits)
    y = flute.gemm(x, q)
    error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
    print(f"{bits} bits: {8 * q.nbytes / weight.size:.2f} bits a weight, relative error of the product {error:.3f}")
