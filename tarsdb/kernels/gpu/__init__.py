"""Work on a CUDA device: CuPy's arrays and matrix products, and kernels of Numba's CUDA target.

Whatever a kernel does is defined over an array namespace, CuPy's or NumPy's, so it is tested
without a device; the kernels are simulated. Nothing here decides what is worth a device, and
nothing runs unless asked for.
"""
