"""The prompt-learning rivals, StyLIP and BiomedCoOp, re-engineered for segmentation as the paper must have done.

Both classify images in their own papers. Here each compares its learned text features with every grid cell, adds
the texts to the cells in proportion (as DenseCLIP, arXiv 2112.01518, does with its score maps) and draws with
MCDRL's head; there is no selection and no intervention. The text tower stays frozen, prompts are what is learned.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcdrl_rt.errors import SpecError
from mcdrl_rt.model.clip import DenseFeatures, encode_texts, load_clip, tokenizer
from mcdrl_rt.model.mcdrl import pad_to_stride, to_input_size
from mcdrl_rt.model.prompts import class_confounder_prompt, class_prompt, confounder_names
from mcdrl_rt.ops import at_least_float32, similarity
from training import losses
from training.dataset import Item
from training.methods.base import Method, Prediction, pretrained_part, start_model
from training.methods.causal import without_contrast
from training.recipe import Recipe

CONTEXT = 4  # learned words of BiomedCoOp, as in its paper
_MASKED = -1e4  # takes a word out of attention
OUTLIER = 1.25  # standard deviations below the mean at which BiomedCoOp drops a prompt of the ensemble


class Prompted(Method):
    """A dense encoder, learned prompts, and the head."""

    def __init__(self, recipe: Recipe, data: Path, clip: Path | None = None) -> None:
        recipe = without_contrast(recipe)
        start = start_model(recipe, data, clip)  # for its encoder and head; what it knows of texts is not used
        super().__init__(recipe, start.spec)
        self.encoder, self.head = start.encoder, start.head
        self.prompts = PromptTower(load_clip(recipe.encoder, clip or recipe.pretrained or None), self.spec.encoder)
        self.strength = nn.Parameter(torch.ones(()))

    def texts(self, features: DenseFeatures) -> Tensor:
        """Class features of unit length for each image, (B, K, d)."""
        raise NotImplementedError

    def teach(self, features: DenseFeatures, texts: Tensor) -> dict[str, Tensor]:
        """Further terms, on the prompts alone."""
        return {}

    def forward(self, batch: Item, intervene: bool = True) -> dict[str, Tensor]:
        features = self._encode(self.normalise(batch.pixels), self.recipe.contrast > 0)
        logits, similarities, texts = self._segment(features)
        terms = self.pixel_terms(at_least_float32(logits), batch.labels) | self.dense_term(similarities, batch.labels)
        if features.summary is not None:
            classes = batch.labels.amax(dim=(1, 2))
            cosines = torch.einsum(
                "bd,bkd->bk", F.normalize(at_least_float32(features.summary), dim=-1), at_least_float32(texts)
            )
            costs = F.cross_entropy(cosines / self.recipe.temperature, (classes - 1).clamp_min(0), reduction="none")
            terms["contrast"] = self.recipe.contrast * losses.weighted_mean(costs, classes > 0)
        return terms | self.teach(features, texts)

    def predict(self, images: Tensor) -> Prediction:
        return self.everywhere(self._segment(self._encode(images, False))[0])

    def pretrained_parameters(self) -> Iterable[nn.Parameter]:
        return pretrained_part(self.encoder, self.recipe)

    def _encode(self, images: Tensor, summary: bool) -> DenseFeatures:
        return self.encoder(pad_to_stride(images, self.encoder.stride), summary)

    def _segment(self, features: DenseFeatures) -> tuple[Tensor, Tensor, Tensor]:
        texts = self.texts(features)
        tokens = features.tokens  # C, (B, T, d)
        similarities = F.normalize(tokens, dim=-1) @ texts.to(tokens.dtype).mT  # (B, T, K)
        mixed = tokens + self.strength * similarities @ texts.to(tokens.dtype)
        grid = mixed.mT.unflatten(2, self.encoder.grid)
        return to_input_size(self.head(grid, features.details), self.encoder, self.spec.input_size), similarities, texts


class StyLIP(Prompted):
    """Prompts made of an image's style (arXiv 2302.09251): one word from each level's channel statistics."""

    def __init__(self, recipe: Recipe, data: Path, clip: Path | None = None) -> None:
        super().__init__(recipe, data, clip)
        levels = (*self.encoder.detail_channels, self.encoder.dim)
        self.words = nn.ModuleList(nn.Linear(2 * channels, self.prompts.width) for channels in levels)
        for word in self.words:
            nn.init.normal_(word.weight, std=1e-3)  # type: ignore[arg-type]

    def texts(self, features: DenseFeatures) -> Tensor:
        grids = [*features.details, features.tokens.mT.unflatten(2, self.encoder.grid)]
        styles = [torch.cat([g.mean(dim=(2, 3)), g.std(dim=(2, 3))], dim=1) for g in grids]  # (B, 2c) each
        words = torch.stack([word(style) for word, style in zip(self.words, styles, strict=True)], dim=1)
        prompts = [class_prompt(name) for name in self.spec.classes]
        return torch.stack([self.prompts(words, prompt) for prompt in prompts], dim=1)


class BiomedCoOp(Prompted):
    """Learned context words, held to an ensemble of written prompts (arXiv 2411.15232).

    Its large language model's prompts are here the class under every condition of the dictionary (t_k,m, Eq. 11).
    """

    def __init__(self, recipe: Recipe, data: Path, clip: Path | None = None) -> None:
        super().__init__(recipe, data, clip)
        self.context = nn.Parameter(self.prompts.embed("a photo of a")[:CONTEXT].clone())
        conditions = confounder_names(recipe.confounders)
        ensemble = [
            encode_texts(
                self.prompts.clip,
                self.spec.encoder,
                [class_prompt(k), *(class_confounder_prompt(k, m) for m in conditions)],
            )
            for k in self.spec.classes
        ]
        self.register_buffer("teacher", torch.stack([F.normalize(e.mean(dim=0), dim=-1) for e in ensemble]))
        self.register_buffer("pruned", torch.stack([F.normalize(_agreeing(e), dim=-1) for e in ensemble]))
        self.teacher: Tensor  # (K, d)
        self.pruned: Tensor

    def texts(self, features: DenseFeatures) -> Tensor:
        batch = len(features.tokens)
        learned = [self.prompts(self.context.unsqueeze(0), f"{name}.") for name in self.spec.classes]  # K × (1, d)
        return torch.stack(learned, dim=1).expand(batch, -1, -1)

    def teach(self, features: DenseFeatures, texts: Tensor) -> dict[str, Tensor]:
        """Its two terms: near the ensemble's mean (SCCM), and cells judged as by the prompts that agree (KDSP)."""
        student = at_least_float32(texts[0])
        cells = F.normalize(at_least_float32(features.tokens), dim=-1).detach()
        told, judged = similarity(cells, self.pruned), cells @ student.mT
        scale = self.recipe.dense_scale
        distil = F.binary_cross_entropy_with_logits(scale * judged, torch.sigmoid(scale * told))
        return {"ensemble": (student - self.teacher).square().sum(dim=-1).mean(), "distil": 0.1 * distil}


class PromptTower(nn.Module):
    """A frozen text tower that takes words as vectors, so that they can be learned.

    Raises:
        SpecError: the tower is not CLIP's own.
    """

    def __init__(self, clip: Any, name: str) -> None:
        super().__init__()
        if not isinstance(clip, open_clip.CLIP) or clip.text_pool_type != "argmax":
            raise SpecError(f"prompts cannot be learned with the text tower of {name}; take one of CLIP's own form")
        clip.visual = None
        # of −∞, which it holds, the moving average of the weights would make NaN
        clip.register_buffer("attn_mask", clip.attn_mask.clamp_min(_MASKED), persistent=False)
        self.clip = clip.requires_grad_(False)
        self.tokenizer = tokenizer(name)
        self.width = clip.token_embedding.embedding_dim

    def embed(self, words: str) -> Tensor:
        """Embeddings of ``words`` without start and end, (n, width)."""
        ids = self.tokenizer([words])[0]
        return self.clip.token_embedding(ids[1 : int(ids.argmax())]).detach()

    def forward(self, words: Tensor, text: str) -> Tensor:
        """Features (B, d) of unit length of prompts that start with ``words`` (B, n, width) and go on with ``text``."""
        clip = self.clip
        ids = self.tokenizer([text])[0].to(words.device)
        rest = clip.token_embedding(ids).expand(len(words), -1, -1)
        x = torch.cat([rest[:, :1], words.to(rest.dtype), rest[:, 1:]], dim=1)
        length = clip.positional_embedding.shape[0]
        end = int(ids.argmax()) + words.shape[1]
        if end >= length:
            raise SpecError(f"the prompt {text!r} is too long for this text tower: {end + 1} words of {length}")
        x = x[:, :length] + clip.positional_embedding
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))[:, end]
        projection = clip.text_projection
        x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
        return F.normalize(at_least_float32(x), dim=-1)


def _agreeing(ensemble: Tensor) -> Tensor:
    """Mean of the prompts (n, d) of one class without those far from what the others say."""
    agreement = ensemble @ F.normalize(ensemble.mean(dim=0), dim=-1)
    keep = agreement >= agreement.mean() - OUTLIER * agreement.std()
    return ensemble[keep].mean(dim=0)
