"""Work on a CUDA device: CuPy's arrays and matrix products, and a kernel of Numba's CUDA target.

All but that kernel is written over an array namespace, CuPy's or NumPy's, so it is tested without a
device. Nothing here decides what is worth a device, and nothing runs unless asked for.
"""
