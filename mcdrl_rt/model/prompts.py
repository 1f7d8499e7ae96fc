"""The words the model is built from: lesion classes, imaging confounders, and the sentences around them.

Sentences are the paper's (§4.1, §4.2.1, Eq. 11). The confounder sets are nested, so that a smaller dictionary is a
prefix of a larger one, and every category is covered as early as its size allows (Table 4: M = 3, 6, 9, 12, 15).
"""

from __future__ import annotations

from mcdrl_rt.errors import SpecError

CLASSES: tuple[str, ...] = ("polyp", "tumor", "inflammation", "nodule", "cyst")

# (condition, category) in dictionary order; the five categories are those of §4.2.1.
CONFOUNDERS: tuple[tuple[str, str], ...] = (
    ("motion blur", "view quality"),
    ("dim lighting", "illumination"),
    ("narrow-band imaging", "imaging technique"),
    ("a close-up view", "distance"),
    ("mucus", "surface interference"),
    ("uneven lighting", "illumination"),
    ("white-light imaging", "imaging technique"),
    ("blood", "surface interference"),
    ("a distant view", "distance"),
    ("bright lighting", "illumination"),
    ("image artifacts", "view quality"),
    ("specular reflection", "surface interference"),
    ("defocus", "view quality"),
    ("bubbles", "surface interference"),
    ("a tangential view", "distance"),
)
CONFOUNDER_COUNTS: tuple[int, ...] = (3, 6, 9, 12, 15)


def confounder_names(count: int = 12) -> tuple[str, ...]:
    """The first ``count`` conditions of the nested dictionary.

    Raises:
        SpecError: ``count`` is not one of 3, 6, 9, 12, 15.
    """
    if count not in CONFOUNDER_COUNTS:
        raise SpecError(f"no confounder dictionary of {count}; choose one of {', '.join(map(str, CONFOUNDER_COUNTS))}")
    return tuple(name for name, _ in CONFOUNDERS[:count])


def class_prompt(name: str) -> str:
    """e_k: “A {class} in an endoscopic image” (§4.1)."""
    return f"A {name} in an endoscopic image"


def confounder_prompt(name: str) -> str:
    """z_m: “An endoscopy image with {domain}.” (§4.2.1)."""
    return f"An endoscopy image with {name}."


def class_confounder_prompt(name: str, confounder: str) -> str:
    """t_k,m: “A {class} with {domain}” (Eq. 11)."""
    return f"A {name} with {confounder}"
