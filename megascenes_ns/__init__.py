"""MegaScenes NVS (Tung et al. 2024): views of a scene generated from one photo and a camera path."""
