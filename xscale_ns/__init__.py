"""XScale-NVS (Wang et al., CVPR 2024): a hash field on the surface of a photogrammetry mesh."""
