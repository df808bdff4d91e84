"""4K4D (CVPR 2024): real-time free-viewpoint video from synchronised views, as nerfstudio methods."""
