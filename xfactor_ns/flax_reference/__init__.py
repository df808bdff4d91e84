"""XFactor's networks once more, in Flax, as plainly as they can be said (spec xfactor 3, 8.6).

The second opinion of the tests and the other side of ``benchmarks/xfactor_step.py``; nothing else uses it. Parameter
trees are those of the original's checkpoints. Needs jax, flax and optax (``pip install nvs-zoo[xfactor]``).
"""
