"""DIVeR (Wu et al., CVPR 2022): a voxel grid of features integrated exactly along rays, as nerfstudio methods."""
