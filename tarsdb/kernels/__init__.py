"""Numeric kernels: arrays in, arrays out.

``reference`` defines each kernel in NumPy, ``cpu`` holds the compiled twins, ``dispatch`` chooses.
Knows no tables, transactions or policy.
"""
