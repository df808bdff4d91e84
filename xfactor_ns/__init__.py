"""XFactor (Mitchel, Ryu, Sitzmann 2026) for nerfstudio: views from video without cameras, with latents that transfer.

See ``docs/xfactor.md``.
"""
