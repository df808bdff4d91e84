"""Names of the weights: in this package's state dict, and in the original's parameter tree (spec xfactor 3.8)."""

from __future__ import annotations


def _dense(ours: str, theirs: str, bias: bool = True) -> dict[str, str]:
    found = {f"{ours}.weight": f"{theirs}/kernel"}
    return found | {f"{ours}.bias": f"{theirs}/bias"} if bias else found


def _norm(ours: str, theirs: str, bias: bool = True) -> dict[str, str]:
    found = {f"{ours}.weight": f"{theirs}/scale"}
    return found | {f"{ours}.bias": f"{theirs}/bias"} if bias else found


def _mlp(ours: str, theirs: str, depth: int) -> dict[str, str]:
    found: dict[str, str] = {}
    for i in range(depth):
        found |= _dense(f"{ours}.fc{i}", f"{theirs}/Dense_{i}")
    return found


def _block(ours: str, theirs: str) -> dict[str, str]:
    found = _norm(f"{ours}.norm_attn", f"{theirs}/LayerNorm_0", bias=False)
    found |= _dense(f"{ours}.qkv", f"{theirs}/Dense_0", bias=False)
    for i, name in enumerate(("q", "k", "q_self", "k_self")):
        found[f"{ours}.{name}_norm.weight"] = f"{theirs}/RMSNorm_{i}/alpha"
    found |= _dense(f"{ours}.proj", f"{theirs}/Dense_1")
    found[f"{ours}.scale_attn"] = f"{theirs}/LayerScale_0/alpha"
    found |= _norm(f"{ours}.norm_mlp", f"{theirs}/LayerNorm_1")
    found |= _mlp(f"{ours}.mlp", f"{theirs}/MLP2_0", 2)
    found[f"{ours}.scale_mlp"] = f"{theirs}/LayerScale_1/alpha"
    return found


def flax_names(blocks: int) -> dict[str, str]:
    """Name in our state dict -> path in the original's tree, of all weights.

    Dense kernels (paths that end in ``/kernel``) are [in, out] there and [out, in] here; everything else is the same.

    Args:
        blocks: in each of the two networks.
    """
    found = _dense("pose_encoder.patch_embed", "PoseEnc/Dense_0")
    found["pose_encoder.registers"] = "PoseEnc/global_embed"
    found |= _norm("pose_encoder.norm", "PoseEnc/LayerNorm_0")
    found |= _mlp("pose_encoder.head", "PoseEnc/PoseHead_0/MLP3_0", 3)
    found |= _mlp("renderer.embed_context", "Render/MLP2_0", 2)
    found |= _mlp("renderer.embed_target", "Render/MLP2_1", 2)
    found |= _norm("renderer.norm", "Render/LayerNorm_0")
    found |= _mlp("renderer.head", "Render/MLP3_0", 3)
    for i in range(blocks):
        found |= _block(f"pose_encoder.blocks.{i}", f"PoseEnc/layers_{i}")
        found |= _block(f"renderer.blocks.{i}", f"Render/layers_{i}")
    return found


def is_kernel(flax_path: str) -> bool:
    """Whether a weight has to be transposed between the two."""
    return flax_path.endswith("/kernel")
