"""FP16: the deployed form as NVIDIA GPUs run it, one conversion for the torch and the TensorRT engines.

Weights and what flows between layers are float16. What must not be stays float32: the normalisation of the pixels, the
scores and softmax of the fused operator (``mcdrl_rt.ops``), and the logits and their resampling. LayerNorm, softmax and
GELU of PyTorch take float16 and compute in float32 inside, on CPUs and GPUs; an export to ONNX, where nothing promises
that, writes the float32 out (``mcdrl_rt.engine.onnx``). BatchNorm is folded into its convolution.

    >>> half = to_half(FoldedMCDRL(model))     # the same uint8 frames in, outputs of the same types   # doctest: +SKIP
"""

from __future__ import annotations

from mcdrl_rt.model.folded import FoldedMCDRL
from mcdrl_rt.model.norms import without_batch_norms


def to_half(model: FoldedMCDRL) -> FoldedMCDRL:
    """A float16 copy of the deployed form, on the same device; ``model`` is left as it is.

    Args:
        model: the deployed form in float32.

    Returns:
        A model with the contract of ``FoldedMCDRL.forward``: uint8 frames in, and outputs of the same shapes and types.
    """
    half = without_batch_norms(model)
    for part in (half.encoder, half.network, half.head):  # mean and std stay float32
        part.half()
    return half
