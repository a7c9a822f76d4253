"""Operations: a file each with its formula in plain PyTorch, faster forms of it in `cpp` and `triton`.

Activations lie as tokens (B, H, W, C), a channels-last map's memory, unless a docstring says otherwise.
"""
